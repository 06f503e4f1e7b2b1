"Remove BatchNorm from trained PyTorch and fastai models without changing what they compute"
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING: # what `__getattr__` finds, for those who read the package and don't run it
    from fastfold.core.absorb import fold_conv_bn
    from fastfold.core.refusals import FoldError
    from fastfold.folder import BN_Folder
    from fastfold.report.rows import FoldReport

__version__ = "0.0.1"
__all__ = ['BN_Folder', 'FoldReport', 'FoldError', 'fold_conv_bn']

_rooms = {
    'BN_Folder': 'fastfold.folder',
    'FoldReport': 'fastfold.report.rows',
    'FoldError': 'fastfold.core.refusals',
    'fold_conv_bn': 'fastfold.core.absorb',
}

def __getattr__(name:str)->Any:
    "Import a public name when it is first asked for, since `import fastfold` has to stay light (PEP 562)"
    if name not in _rooms: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_rooms[name]), name)

def __dir__()->list[str]:
    "List the names that are imported when asked for, too"
    return sorted({*globals(), *_rooms})
