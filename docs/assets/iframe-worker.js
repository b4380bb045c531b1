// Browsers start no worker from a file on the disk. There a hidden frame does a worker's work, so that search runs without a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe"), script = document.createElement("script")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      script.src = new URL(url, location.href).href
      script.onload = () => { this.ready = true; this.waiting.splice(0).forEach(data => this.postMessage(data)) }
      frame.contentDocument.body.append(script)
    }
    postMessage(data) {
      if (this.ready) this.inside.dispatchEvent(new this.inside.MessageEvent("message", {data}))
      else this.waiting.push(data)
    }
  }
}
