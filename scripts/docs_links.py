"Does every link of the built site lead somewhere, and does nothing come from outside?"
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import re

# What a browser loads by itself, as opposed to what somebody clicks on.
LOADS = {("img", "src"), ("img", "srcset"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"),
         ("video", "src"), ("audio", "src"), ("object", "data"), ("embed", "src"), ("use", "href"), ("image", "href")}


class Links(HTMLParser):
    "Links and anchors of a page."
    def __init__(self): super().__init__(); self.anchors, self.links, self.twice = set(), [], set()
    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if v is None: continue
            if k == "id" or (k == "name" and tag == "a"):
                if v in self.anchors and k == "id": self.twice.add(v)
                self.anchors.add(v)
            if (tag, k) in LOADS:
                self.links += [(u.split()[0], True) for u in (v.split(",") if k == "srcset" else [v]) if u.strip()]
            elif tag == "a" and k == "href": self.links.append((v, False))


def check_links(site):
    "(number of pages, number of links looked at, list of complaints) of the folder `site`."
    site, pages = Path(site), {}
    for f in sorted(site.rglob("*.html")): pages[f] = p = Links(); p.feed(f.read_text(encoding="utf-8"))
    wrong, seen = [], 0
    for f, p in pages.items():
        where = f.relative_to(site).as_posix()
        for anchor in sorted(p.twice): wrong.append(f"{where}: the anchor #{anchor} is there twice")
        for href, loads in p.links:
            seen += 1
            parts = urlsplit(href)
            if parts.scheme in ("http", "https") or (not parts.scheme and parts.netloc):
                if loads: wrong.append(f"{where}: loads {href} from outside")
                continue
            if parts.scheme: continue  # mailto:, data:
            path = unquote(parts.path)
            target = f if not path else site/path.lstrip("/") if path.startswith("/") else f.parent/path
            target = target.resolve()
            if target.is_dir(): target /= "index.html"
            if not target.is_file() or site.resolve() not in target.parents:
                wrong.append(f"{where}: {href} leads nowhere")
            elif (parts.fragment and target.suffix == ".html"
                  and (known := pages.get(site/target.relative_to(site.resolve())))
                  and unquote(parts.fragment) not in known.anchors):
                wrong.append(f"{where}: {href} names an anchor that is not there")
    for f in sorted(site.rglob("*.css")):
        for url in re.findall(r"url\(\s*['\"]?([^'\")]+)", f.read_text(encoding="utf-8")):
            if re.match(r"(https?:)?//", url):
                wrong.append(f"{f.relative_to(site).as_posix()}: loads {url} from outside")
    return len(pages), seen, wrong
