"""Import this, and PyTorch has a device 'gpu': `model.to('gpu')`, `x.gpu()`, `torch.device('gpu:0')`.

It is made of CPU memory (see second_device.cpp), and says nothing about speed or about how a GPU rounds. It finds
tensors that are made on the wrong device, and results that are left on the CPU. It takes a C++ compiler and 20 seconds
the first time; TORCH_EXTENSIONS_DIR names the directory for what is built."""
import types, warnings
from pathlib import Path
import torch
from torch.utils.cpp_extension import load

class Device:
    "Stands for `torch.cuda.device`: there is one device only, so nothing is to be changed"
    def __init__(self, device=None): self.prev_idx = 0
    def __enter__(self): pass
    def __exit__(self, *args): return False

def nothing(*args, **kwargs): pass

def module():
    "Return what `torch.gpu` is to be: the part of `torch.cuda` that PyTorch and fastai ask for"
    res = types.ModuleType('torch.gpu')
    vars(res).update(device=Device, device_count=lambda: 1, current_device=lambda: 0, set_device=nothing,
        get_device_name=lambda device=None: 'gpu', is_available=lambda: True, is_initialized=lambda: True,
        synchronize=nothing, _lazy_init=nothing, _is_in_bad_fork=lambda: False, manual_seed_all=nothing,
        get_rng_state=lambda device=0: torch.get_rng_state(), set_rng_state=nothing,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16])
    return res

with warnings.catch_warnings():
    warnings.simplefilter('ignore') # no CUDA is found
    built = load('second_device', [str(Path(__file__).with_name('second_device.cpp'))], extra_cflags=['-O0', '-w'])
torch.utils.rename_privateuse1_backend('gpu')
torch._register_device_module('gpu', module())
torch.utils.generate_methods_for_privateuse1_backend(for_storage=False)
built.start()
