"""Sums that merging used to stop at: behind a wrapper, before a factor and a shift, beside what can't be merged, and with
kernels that pad one side more than the other. Each with what must stay. Without verification, in float64, to 1e-9"""
from functools import wraps
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import batch, Block, branches, conv, images, merge, merges, normed, Part, refuses, tensors

# what is wrapped around a forward

def repeated(*args): raise AssertionError('only in training')

class Checkpointing(nn.Module):
    "As in transformers: each forward of a subclass is wrapped"
    saves = False
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        forward = cls.forward
        @wraps(forward)
        def checkpointed(self, *args, **kwargs):
            is_outermost = type(self).forward is checkpointed
            if self.saves and self.training and torch.is_grad_enabled() and is_outermost:
                if 'use_cache' in kwargs and kwargs['use_cache']: kwargs['use_cache'] = False
                return repeated(forward, self, *args, **kwargs)
            return forward(self, *args, **kwargs)
        cls.forward = checkpointed

class CallsCheckpointed(nn.Module):
    "The same for the call, as in its older versions"
    saves = True
    def __call__(self, *args, **kwargs):
        if self.saves and self.training: return repeated(super().__call__, *args, **kwargs)
        return super().__call__(*args, **kwargs)

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = normed(conv(padding=1))
        self.n = nn.BatchNorm2d(4)
    def forward(self, x): return self.a(x) + self.n(x)

class Wrapped(Checkpointing, Sum):
    def forward(self, x): return self.a(x) + self.n(x)

class WrappedTwice(Wrapped):
    def forward(self, x): return super().forward(x)

class CalledOtherwise(CallsCheckpointed, Sum): pass

@pytest.mark.parametrize('cls', [Wrapped, WrappedTwice, CalledOtherwise])
def test_checkpointing(cls):
    "Alone, as a part of a sum, and around one"
    merges(cls(), others=[batch(1, 4, 3, 3)])
    merges(Block(lambda m,x: m.inner(x) - m.c(x), inner=cls(), c=conv(k=1)))
    merges(nn.Sequential(cls(), nn.ReLU(), cls()), n=2)

def wrapping(wrapper, inner=Sum.forward):
    "A block whose forward is `wrapper(inner, self, *args)`"
    class Wrapping(Sum):
        @wraps(inner)
        def forward(self, *args): return wrapper(inner, self, *args)
    return Wrapping()

def test_other_wrappers():
    class Inherits(Sum):
        @wraps(Sum.forward)
        def forward(self, *given, **named): return super().forward(*given, **named)
    merges(Inherits())
    merges(wrapping(lambda f,m,x: f(m, x)))

class Either(Sum):
    "Takes a pair, too"
    def forward(self, x):
        if isinstance(x, tuple): x = x[0]
        return self.a(x) + self.n(x)

class GivesPairs(nn.Module):
    "To its block, for other inputs"
    def __init__(self, block):
        super().__init__()
        self.block = block
    def forward(self, x): return self.block(x if len(x)>1 else (x, x)).relu()

def test_types_asked_inside():
    "The wrapper doesn't ask, but what is in it does"
    for block in wrapping(lambda f,m,*args: f(m, *args), Either.forward), type('Saves', (Checkpointing, Either), {})():
        refuses(GivesPairs(block), others=[batch(1, 4, 5, 5)], why='it asks for the type')

def test_types_asked_outside():
    class Unpacks(Sum):
        @wraps(Sum.forward)
        def forward(self, x):
            is_own = type(self) is Unpacks
            return Sum.forward(self, x[0] if isinstance(x, tuple) and is_own else x)
    refuses(GivesPairs(Unpacks()), others=[batch(1, 4, 5, 5)], why='it asks for the type')
    class CalledWithPairs(Sum):
        def __call__(self, x): return super().__call__(x[0] if isinstance(x, tuple) else x)
    outer = Block(lambda m,x: m.inner(x if len(x)>1 else (x, x)) + m.c(x), inner=CalledWithPairs(), c=conv(k=1))
    refuses(outer, others=[batch(1, 4, 5, 5)], why="can't trace")

class Tells(nn.Module):
    "An option to its block, for other inputs"
    def __init__(self, block):
        super().__init__()
        self.block = block
    def forward(self, x): return (self.block(x) if len(x)>1 else self.block(x, negative=True)).relu()

def test_options_outside():
    "Which the forward itself hasn't got"
    class Optional(Sum):
        @wraps(Sum.forward)
        def forward(self, x, negative=False): return Sum.forward(self, x)*(-1 if negative else 1)
    class Looks(Sum):
        @wraps(Sum.forward)
        def forward(self, *args, **kwargs): return Sum.forward(self, *args)*(-1 if kwargs else 1)
    class Counts(Sum):
        @wraps(Sum.forward)
        def forward(self, x, *more, **kwargs):
            if self.training: kwargs = {}
            return Sum.forward(self, x)*(-1 if len(kwargs) else 1)
    for cls in Optional, Looks, Counts:
        refuses(Tells(cls()), others=[batch(1, 4, 5, 5)], why='more than tensors')

class TellsCall(Tells):
    def forward(self, x): return (self.block(x) if len(x)>1 else self.block(-x)).relu()

@pytest.mark.parametrize('call', [
    lambda f,self,x: f(x) if self.training else f(x.abs()), lambda f,self,x: f(x).abs(),
    lambda f,self,x: f(x.abs() if not self.training else x)])
def test_calls_of_its_own(call):
    class Own(Sum):
        def __call__(self, x): return call(super().__call__, self, x)
    class Else(Sum):
        def __call__(self, x):
            if self.training or x.sum()<0: return super().__call__(x.abs())
            return super().__call__(x)
    for block in Own(), Else(): refuses(TellsCall(block), others=[-images, images[:1]], why='a way of its own')

def test_asks_of_itself():
    "What parts a module has is the same for all inputs"
    class Chooses(Sum):
        def forward(self, x):
            y = self.a(x) if isinstance(self.a, nn.Sequential) else x
            for part in self.more:
                if not isinstance(part, nn.ReLU): y = y + part(x)
            return y
        def __init__(self):
            super().__init__()
            self.more = nn.ModuleList([nn.ReLU(), conv(k=1), self.n])
    merges(Chooses())
    class Held(Chooses):
        "The same variable holds an input"
        def forward(self, x):
            for part in self.more: pass
            part = x
            return self.a(x) + self.n(x if isinstance(part, torch.Tensor) else x[0]) + self.more[1](x)
    refuses(Held(), why='it asks for the type')

def test_set_for_an_input():
    "What a module finds in itself was put there by the one around it"
    class Sets(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Reads()
        def forward(self, x):
            self.block.mode = None if len(x)>1 else 2
            return self.block(x).relu()
    class Reads(Sum):
        mode = None
        def forward(self, x): return (self.a(x) + self.n(x))*(2 if isinstance(self.mode, int) else 1)
    refuses(Sets(), others=[batch(1, 4, 5, 5)], why='has attributes set')

# kernels that pad the end of an axis more

def same(k, i=4, o=4, cls=nn.Conv2d, **kwargs): return cls(i, o, k, padding='same', **kwargs)
sizes = [batch(1, 4, *s, seed=sum(s)) for s in ((3,4), (1,1), (6,2), (5,5))]

@pytest.mark.parametrize('kw', [dict(k=2), dict(k=4), dict(k=(2,3)), dict(k=(1,4)), dict(k=(6,1)), dict(k=2, groups=4),
    dict(k=(4,3), dilation=(1,2)), dict(k=2, bias=False), dict(k=4, padding_mode='replicate')])
def test_even_residual(kw):
    rep = merges(branches(same(**kw), nn.Identity()), others=sizes)
    assert rep.merged[0].members==['0.b0']
    merges(branches(nn.BatchNorm2d(4), normed(same(**kw)), conv(k=1, groups=kw.get('groups', 1))), others=sizes)

def layer_of(block, x=images):
    net = live(nn.Sequential(block, nn.ReLU()))
    folder = BN_Folder(merge=True)
    return folder.fold(net, x).get_submodule(folder.report.merged[0].name)

def test_even_layer():
    "It is of the same size, and has the value itself where the kernel begins, or left of the middle"
    for k,at in (2,0), (4,1), (3,1):
        block = live(branches(same(k), nn.Identity()))
        layer = layer_of(block)
        assert (layer.kernel_size,layer.padding)==((k,k), 'same' if k%2==0 else (1,1))
        kept = layer.weight - block.b0.weight
        assert torch.allclose(kept[:,:,at,at], torch.eye(4).double()) and abs(kept.sum()-4)<1e-12

@pytest.mark.parametrize('mode', ['circular', 'reflect', 'replicate'])
def test_even_modes(mode):
    kw,more = dict(padding_mode=mode),[batch(1, 4, 5, 4), batch(2, 4, 3, 3)]
    merges(branches(same(4, **kw), same(2, **kw), nn.Identity()), others=more)
    merges(branches(same(2, **kw), conv(padding=1, **kw)), others=more)
    refuses(branches(same(2, **kw), conv(padding=1)), why='pad in the same way')
    refuses(branches(same(2), conv(padding=1, **kw)), why='pad in the same way')

@pytest.mark.parametrize('cls,x,more', [
    (nn.Conv1d, batch(2, 4, 9), batch(1, 4, 2)), (nn.Conv3d, batch(2, 4, 5, 4, 6), batch(1, 4, 2, 1, 3)),
    (nn.Conv1d, batch(4, 9), batch(4, 1)), (nn.Conv2d, batch(4, 7, 9), batch(4, 2, 2))])
def test_even_axes(cls, x, more): merges(branches(same(2, cls=cls), same(4, cls=cls), nn.Identity()), x, [more])

def test_even_sums():
    "The largest padding of each side: of two even ones, of an even and an odd one, with dilation"
    merges(branches(same(2), same(4), same(3)), others=sizes)
    rep = merges(branches(same(2), conv(padding=1)), others=sizes)
    assert rep.merged[0].kind=='Conv2d'
    merges(branches(same(2, dilation=3), same(4), nn.Identity()), others=sizes)
    merges(branches(same(2, dilation=2), same(2), conv(padding=1)), others=sizes)
    merges(branches(same((2,1)), same((1,2)), same(2)), others=sizes)
    merges(branches(nn.AvgPool2d(3, 1, 1), same(4), nn.Sequential(conv(k=1, bias=False), same(2))), others=sizes)
    merges(Block(lambda m,x: m.a(x)*m.g - 2*x, a=same(4), g=nn.Parameter(torch.randn(4, 1, 1))), others=sizes)

def test_even_chains():
    merges(branches(nn.Sequential(conv(4, 6, k=1, bias=False), same(2, 6)), nn.Identity()), others=sizes)
    merges(branches(nn.Sequential(same(4, 4, 6), conv(6, k=1)), nn.Identity()), others=sizes)
    ends = nn.Sequential(same(2), conv(k=1, stride=2)),conv(padding=1, stride=2)
    merges(branches(*ends), others=sizes) # as much padding on both sides, in all
    merges(branches(nn.Sequential(conv(k=1, bias=False, padding=1), same(2)), conv(padding=2), conv(k=(5,5), padding=3)))

def test_even_stays():
    shifted = nn.Sequential(conv(k=1), same(2))
    refuses(branches(shifted, same(2)), others=sizes, why='pads what has been shifted')
    refuses(branches(nn.Sequential(nn.BatchNorm2d(4), same(2)), conv(padding=1)), why='pads what has been shifted')
    ends = [nn.Sequential(same(2), conv(k=1, stride=2)) for _ in range(2)]
    refuses(branches(*ends), others=sizes, why='one side more')
    ends = [nn.Sequential(conv(k=1, bias=False, padding=1), same(2)) for _ in range(2)]
    refuses(branches(*ends), others=sizes, why='one side more')
    refuses(branches(same(2), conv(k=2, padding=1, stride=2)), batch(2, 4, 1, 1), why='strides')
    refuses(branches(nn.Sequential(same(2), same(2)), same(3)), others=sizes, why='looks further')
    refuses(branches(same(2, dilation=3), nn.Identity()), others=sizes, why='multiplications')
    refuses(branches(nn.Sequential(same(2, bias=False), conv(k=1, padding=1)), conv(padding=2)), why='pad in the same')
    refuses(branches(same(2, groups=4), conv(k=1)), why='multiplications')
    refuses(Block(lambda m,x: m.a(F.pad(x, (0,1,0,1))) + x, a=conv(k=2)), others=sizes) # not seen as padding

def test_even_half():
    "In the dtype of the layer, and in channels last"
    net = live(nn.Sequential(branches(same(2), nn.BatchNorm2d(4)), nn.ReLU())).to(memory_format=torch.channels_last).half()
    folder,x = BN_Folder(merge=True),images.half()
    layer = folder.fold(net, x).get_submodule(folder.report.merged[0].name)
    assert layer.weight.dtype==torch.half and layer.weight.is_contiguous(memory_format=torch.channels_last)
