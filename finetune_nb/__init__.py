import warnings

__version__ = "0.1.0"

# fastai 2.8 compiles some layers with torch.jit.script, whose deprecation torch announces on every import: nothing a
# user can act on.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
