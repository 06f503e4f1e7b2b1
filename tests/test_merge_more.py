"""Sums that merging used to stop at: behind a wrapper, before a factor and a shift, beside what can't be merged, and
with kernels that pad one side more than the other. Each with what must stay. Without verification, in float64, to
1e-9"""
from functools import wraps
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import batch, Block, branches, conv, images, merge, merges, normed, refuses, tensors

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
    refuses(Sets(), others=[batch(1, 4, 5, 5)], why='a forward sets attributes of')

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
    padded = nn.Sequential(conv(k=1, bias=False, padding=1), same(2))
    merges(branches(padded, conv(padding=2), conv(k=(5,5), padding=3)))

def test_even_stays():
    shifted = nn.Sequential(conv(k=1), same(2))
    refuses(branches(shifted, same(2)), others=sizes, why='pads with zeros what has been shifted')
    refuses(branches(nn.Sequential(nn.BatchNorm2d(4), same(2)), conv(padding=1)), why='what has been shifted')
    ends = [nn.Sequential(same(2), conv(k=1, stride=2)) for _ in range(2)]
    refuses(branches(*ends), others=sizes, why='one side more')
    ends = [nn.Sequential(conv(k=1, bias=False, padding=1), same(2)) for _ in range(2)]
    refuses(branches(*ends), others=sizes, why='one side more')
    refuses(branches(same(2), conv(k=2, padding=1, stride=2)), batch(2, 4, 1, 1), why='strides')
    refuses(branches(nn.Sequential(same(2), same(2)), same(3)), others=sizes, why='looks at several pixels')
    refuses(branches(same(2, dilation=3), nn.Identity()), others=sizes, why='multiplications')
    refuses(branches(nn.Sequential(same(2, bias=False), conv(k=1, padding=1)), conv(padding=2)), why='pad in the same')
    refuses(branches(same(2, groups=4), conv(k=1)), why='multiplications')
    refuses(Block(lambda m,x: m.a(F.pad(x, (0,1,0,1))) + x, a=conv(k=2)), others=sizes) # not seen as padding

def test_even_half():
    "In the dtype of the layer, and in channels last"
    net = live(nn.Sequential(branches(same(2), nn.BatchNorm2d(4)), nn.ReLU()))
    net = net.to(memory_format=torch.channels_last).half()
    folder,x = BN_Folder(merge=True),images.half()
    layer = folder.fold(net, x).get_submodule(folder.report.merged[0].name)
    assert layer.weight.dtype==torch.half and layer.weight.is_contiguous(memory_format=torch.channels_last)

# a child behind the sum that multiplies and shifts

def parameter(*shape): return nn.Parameter(torch.randn(shape, dtype=torch.float64))

class Affine(nn.Module):
    "As in PP-LCNetV3"
    def __init__(self, *shape, f=lambda m,x: m.scale*x + m.bias):
        super().__init__()
        self.scale,self.bias = parameter(*shape),parameter(*shape)
        self.f = f
    def forward(self, x): return self.f(self, x)

def affine_after(child, **parts):
    parts = parts or dict(a=normed(conv(padding=1)), b=normed(conv(k=1)))
    return Block(lambda m,x: m.lab(m.a(x) + m.n(x) + m.b(x)), lab=child, n=nn.BatchNorm2d(4), **parts)

more_sizes = [batch(1, 4, 3, 3, seed=1), batch(3, 4, 5, 6, seed=2), batch(1, 4, 1, 1, seed=3)]

@pytest.mark.parametrize('shape', [(1,), (), (4,1,1), (1,4,1,1)])
@pytest.mark.parametrize('f', [lambda m,x: m.scale*x + m.bias, lambda m,x: (m.bias - x)*m.scale,
    lambda m,x: torch.add(m.bias, x*m.scale, alpha=3), lambda m,x: x.mul_(m.scale).sub_(m.bias, alpha=.5),
    lambda m,x: x + m.bias + m.scale])
def test_affine_child(shape, f):
    "It goes into the layer with the sum"
    rep = merges(affine_after(Affine(*shape, f=f)), others=more_sizes)
    assert {'0.lab.scale', '0.lab.bias'} <= set(rep.merged[0].members)
    folded = BN_Folder(merge=True).fold(live(nn.Sequential(affine_after(Affine(*shape, f=f)))), images)
    assert [n for n,_ in folded.named_parameters()]==['0.a_merged.weight', '0.a_merged.bias']

def test_affine_buffers():
    child = Affine(4, 1, 1)
    for k in 'scale','bias':
        t = child._parameters.pop(k).detach()
        child.register_buffer(k, t, persistent=k=='bias')
    merges(affine_after(child), others=more_sizes)

def test_affine_linear():
    parts = dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    def f(m, x): return m.lab(m.a(x) + m.b(x))
    for shape in (4,), (1,): merges(Block(f, lab=Affine(*shape), **parts), batch(3, 4), [batch(2, 4)])
    rep = merge(Block(f, lab=Affine(3, 1), **parts), batch(3, 4)) # each item has its own
    assert len(rep.merged)==1 and rep.merged[0].members==['0.a', '0.b']

def up_to_the_sum(block, *args, **kwargs):
    "The layers become one, and the child stays as it is"
    rep = merges(block, *args, **kwargs)
    assert not [o for o in rep.merged[0].members if 'lab' in o], rep.merged
    return rep

@pytest.mark.parametrize('f', [
    lambda m,x: x*m.scale.exp() + m.bias, lambda m,x: x*torch.sigmoid(x*m.scale) + m.bias,
    lambda m,x: m.scale*x*x + m.bias, lambda m,x: m.scale*x/x.shape[-1] + m.bias,
    lambda m,x: m.scale.view(-1, 1, 1)*x + m.bias.view(-1, 1, 1),
    lambda m,x: x.clamp(-1, 1)*m.scale + m.bias, lambda m,x: torch.addcmul(m.bias, x, m.scale),
    lambda m,x: x*m.scale + m.bias + m.bias.sum(), lambda m,x: (x*m.scale + m.bias) if x.shape[-1]>4 else x])
def test_up_to_the_sum(f): up_to_the_sum(affine_after(Affine(4, 1, 1, f=f)), others=more_sizes)

def test_up_to_a_spatial_shift():
    "A bias for each place, a scale for each channel"
    child = Affine(4, 1, 1)
    child.bias = parameter(4, 7, 9)
    up_to_the_sum(affine_after(child), others=[batch(1, 4, 7, 9)])
    child = Affine(1, f=lambda m,x: (m.scale*x + m.bias)*m.mask)
    child.mask = parameter(1, 1, 7, 9)
    up_to_the_sum(affine_after(child), others=[batch(1, 4, 7, 9)])

def test_shared_child():
    "One for two sums, or used again behind the activation"
    lab = Affine(4, 1, 1)
    blocks = [affine_after(lab) for _ in range(2)]
    rep = merge(nn.Sequential(blocks[0], nn.ReLU(), blocks[1]), others=more_sizes)
    assert [o.members for o in rep.merged]==[['0.0.a.0', '0.0.n', '0.0.b.0']] # whose name the child has
    def again(m, x): return m.lab(m.lab(m.a(x) + m.n(x)).relu())
    up_to_the_sum(Block(again, lab=Affine(4, 1, 1), a=normed(conv(padding=1)), n=nn.BatchNorm2d(4)))
    def read(m, x): return m.lab(m.a(x) + m.n(x)).relu()*m.lab.scale
    rep = merge(Block(read, lab=Affine(4, 1, 1), a=normed(conv(padding=1)), n=nn.BatchNorm2d(4)))
    assert len(rep.merged)==1 and '0.lab.scale' not in rep.merged[0].members

def test_sum_read_before_the_child():
    "What the sum makes is needed as it is"
    def f(m, x):
        y = m.a(x) + m.n(x)
        return m.lab(y) + y.relu()
    up_to_the_sum(Block(f, lab=Affine(4, 1, 1), a=normed(conv(padding=1)), n=nn.BatchNorm2d(4)), others=more_sizes)

@pytest.mark.parametrize('kind', ['register_forward_hook', 'register_forward_pre_hook'])
def test_hooked_child(kind):
    child = Affine(4, 1, 1)
    getattr(child, kind)(lambda *args: None)
    up_to_the_sum(affine_after(child), others=more_sizes)

def test_child_with_an_option():
    class Optional(Affine):
        def forward(self, x, twice=False): return super().forward(x)*(2 if twice else 1)
    merges(affine_after(Optional(1)))
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.n,self.lab = normed(conv(padding=1)),nn.BatchNorm2d(4),Optional(1)
        def forward(self, x, twice): return self.lab(self.a(x) + self.n(x), twice)
    outer = Block(lambda m,x: m.inner(x, len(x)<2).relu(), inner=Given())
    rep = merge(outer, others=[batch(1, 4, 5, 5)])
    assert not rep.merged

def test_shift_before_zeros():
    "A shift inside of a branch, whose convolution pads with zeros"
    def f(m, x): return m.a(x + m.bias) + x
    for a,why in (conv(padding=1), 'pads with zeros what'), (same(2), 'pads with zeros what'):
        refuses(Block(f, a=a, bias=parameter(4, 1, 1)), others=more_sizes, why=why)
    merges(Block(f, a=conv(k=1), bias=parameter(4, 1, 1)), others=more_sizes)
    merges(Block(f, a=conv(padding=1, padding_mode='circular'), bias=parameter(4, 1, 1)), others=more_sizes[:2])
    refuses(Block(f, a=conv(k=1), bias=parameter(4, 7, 9)), why='another axis')
    def shared(m, x):
        y = x + m.bias
        return m.a(y) + m.b(y)
    merges(Block(shared, a=conv(padding=1), b=conv(k=1), bias=parameter(4, 7, 9)))

def test_shift_of_another_dtype():
    def f(m, x): return m.a(x) + m.b(x) + m.bias
    net = nn.Sequential(Block(f, a=conv(padding=1), b=conv(k=1), bias=parameter(4, 1, 1)), nn.ReLU()).eval()
    folder,x = BN_Folder(merge=True, verify=False),images.float()
    folded = folder.fold(net, x) # the sum in float32, the shift makes it float64
    assert folder.report.merged[0].members==['0.a', '0.b'] and folded(x).dtype==torch.float64
    assert difference(tensors(net, x), tensors(folded, x))<1e-6


# some terms of a sum

class Rolls(nn.Module):
    def forward(self, x): return x.roll(1, -1)

def some(f, *args, members, n=1, others=more_sizes, **parts):
    "The layers `members` of a block with the forward `f` become one, and what is beside them stays"
    known = dict(a=normed(conv(padding=1)), b=normed(conv(k=1)), c=conv(padding=1), n=nn.BatchNorm2d(4))
    parts = {k:m for k,m in (known | parts).items() if k in f.__code__.co_names}
    rep = merge(Block(f, **parts), *args, others=others)
    assert [sorted(o.members) for o in rep.merged]==[sorted(f'0.{m}' for m in members)]*n, f'{rep} {rep.sums}'
    return rep

@pytest.mark.parametrize('f', [
    lambda m,x: m.a(x) + x.relu() + m.b(x), lambda m,x: x.relu() + m.a(x) + m.b(x),
    lambda m,x: m.a(x) + (x.relu() + m.b(x)), lambda m,x: (m.a(x) + x.relu()) + (x.sin() + m.b(x)),
    lambda m,x: m.a(x) - x.relu() + m.b(x),
    lambda m,x: x.relu() - m.a(x) - m.b(x), lambda m,x: m.a(x) - (x.relu() - m.b(x)),
    lambda m,x: 3 - (m.b(x)/2 + x.relu())*5 + m.a(x), lambda m,x: sum([x.relu(), m.a(x), x.sin(), m.b(x)]),
    lambda m,x: torch.add(x.relu(), m.a(x), alpha=.3) + m.b(x) + x.sin(),
    lambda m,x: torch.add(m.a(x), x.relu(), alpha=-3) + m.b(x), lambda m,x: m.a(x) + 2 + x.relu() + 1 + m.b(x),
    lambda m,x: (m.a(x) + x.relu() + m.b(x)).sigmoid(), lambda m,x: ((m.a(x) + x.relu())*2 + m.b(x))*m.eps])
def test_terms(f): some(f, members=['a.0', 'b.0'], eps=.3)

def test_terms_and_the_value():
    some(lambda m,x: m.a(x) + x.relu() + x, members=['a.0'])
    some(lambda m,x: x + x.relu() + m.a(x), members=['a.0'])
    some(lambda m,x: x - x.sin() + m.n(x) - m.a(x) + x.cos(), members=['a.0', 'n'])
    some(lambda m,x: m.n(x) + x.relu() + m.d(x) - x, members=['d', 'n'], d=conv(groups=4, padding=1))

def test_terms_in_place():
    def f(m, x):
        y = m.a(x)
        y += x.relu()
        y += m.b(x)
        return y
    some(f, members=['a.0', 'b.0'])
    def written(m, x):
        y = x.sin()
        z = y.view_as(y)
        y.add_(m.a(x))
        y.add_(m.b(x))
        return y + z
    refuses(Block(written, a=conv(padding=1), b=conv(k=1)))
    def by_name(m, x):
        y = x.sin()
        y.add_(m.a(x)).add_(m.b(x))
        return y
    rep = merge(Block(by_name, a=conv(padding=1), b=conv(k=1)), others=more_sizes)
    assert not rep.merged

def test_terms_that_refuse():
    "What keeps one of them apart doesn't keep the others"
    some(lambda m,x: m.a(x) + m.d(x) + m.b(x), members=['a.0', 'b.0'], d=conv(padding=1, padding_mode='circular'))
    shifted = nn.Sequential(conv(k=1), conv(padding=1))
    some(lambda m,x: m.d(x) + m.a(x) + m.b(x), members=['a.0', 'b.0'], d=shifted)
    hooked = conv(padding=1)
    hooked.register_forward_hook(lambda *args: None)
    for d in hooked, nn.Sequential(hooked): some(lambda m,x: m.a(x) + m.d(x) + m.b(x), members=['a.0', 'b.0'], d=d)
    deep = nn.Sequential(conv(padding=1), conv(padding=1))
    some(lambda m,x: m.a(x) + m.d(x) + m.b(x), members=['a.0', 'b.0'], d=deep)
    some(lambda m,x: m.d(x) + m.c(x)*m.c.weight.mean() + m.b(x), members=['d', 'b.0'], d=conv(padding=1))
    some(lambda m,x: m.a(x) + m.d(x) + m.b(x), members=['a.0', 'b.0'], d=conv(k=7, padding=3, groups=4))
    some(lambda m,x: m.a(x) + m.c(x) + m.b(x) + m.c(x.relu()), members=['a.0', 'b.0'])

def test_terms_read_elsewhere():
    "One that is needed as it is stays a term"
    def f(m, x):
        c = m.c(x)
        return (m.a(x) + c + m.b(x)).relu() + c.sigmoid()
    some(f, members=['a.0', 'b.0'])
    def returned(m, x):
        c = m.c(x)
        return torch.stack([m.a(x) + c + m.b(x), c])
    some(returned, members=['a.0', 'b.0'])
    def sums(m, x):
        y = m.a(x) + x.relu()
        return y + m.b(x) - y.sigmoid()
    rep = merge(Block(sums, a=conv(padding=1), b=conv(k=1)), others=more_sizes)
    assert not rep.merged and not rep.sums
    def kept(m, x):
        y = m.a(x) + x.relu()
        return torch.stack([y + m.b(x), y])
    refuses(Block(kept, a=conv(padding=1), b=conv(k=1)))

def test_terms_asked_for_their_size():
    "Between the additions, where another input might be broadcast"
    def f(m, x):
        y = m.pool(x).relu() + m.a(x)
        n = y.shape[-1]
        return (y + m.b(x)).sigmoid()*n
    wide = [batch(1, 4, 3, 3), batch(2, 4, 5, 1)]
    block = Block(f, a=conv(k=1), b=conv(k=1), pool=nn.AdaptiveAvgPool2d(1))
    rep = merge(block, batch(2, 4, 1, 1), wide)
    assert not rep.merged
    def same_size(m, x): return m.pool(x).relu() + m.a(x) + m.b(x)
    merges(Block(same_size, a=conv(k=1), b=conv(k=1), pool=nn.AdaptiveAvgPool2d(1)), batch(2, 4, 1, 1), wide)

def test_terms_of_other_sizes():
    "Strides by which only the example comes out as it does"
    block = Block(lambda m,x: m.a(x) + x.relu() + m.b(x), a=conv(padding=1, stride=2), b=conv(k=1))
    refuses(block, batch(2, 4, 1, 1))
    def f(m, x): return m.a(x) + m.d(x) + m.b(x)
    some(f, batch(2, 4, 1, 1), members=['a.0', 'b.0'], d=conv(padding=1, stride=2), others=[])

class Split(nn.Module):
    "One branch in a part that can't be traced"
    def __init__(self):
        super().__init__()
        self.c = conv(padding=1)
    def forward(self, x): return self.c(x if x.shape[-1]>1 else x.exp())

class Pair(nn.Module):
    "One branch in a part that makes more"
    def __init__(self):
        super().__init__()
        self.c = conv(padding=1)
    def forward(self, x): return self.c(x),x.exp()

def test_terms_out_of_sight():
    def first(m, x): return m.d(x) + m.a(x) + m.b(x)
    def second(m, x): return m.a(x) + m.d(x) + m.b(x)
    def last(m, x): return m.a(x) + m.b(x) + m.d(x)
    for f in first,second,last: some(f, members=['a.0', 'b.0'], d=Split())
    def pair(m, x):
        y,z = m.d(x)
        return (m.a(x) + y + m.b(x)).relu() + z
    some(pair, members=['a.0', 'b.0'], d=Pair())
    def sized(m, x): return m.a(x) + m.c(x)/x.shape[-1] + m.b(x)
    some(sized, members=['a.0', 'b.0'])
    some(lambda m,x: m.c(x)/x.shape[-1] + m.a(x) + m.b(x), members=['a.0', 'b.0'])

def test_terms_in_parts():
    "Additions in parts of their own"
    class Plus(nn.Module):
        def forward(self, x, y): return x + y
    def f(m, x): return m.p(m.q(m.a(x), x.relu()), m.b(x))
    some(f, members=['a.0', 'b.0'], p=Plus(), q=Plus())
    class PlusRelu(nn.Module):
        def forward(self, x, y): return x + y.relu()
    refuses(Block(lambda m,x: m.p(m.a(x), x) + m.b(x), p=PlusRelu(), a=conv(padding=1), b=conv(k=1)), others=more_sizes,
        why="doesn't show what goes in")
    class PlusAsks(nn.Module):
        def forward(self, x, y): return x + y if x.shape[-1]>2 else x - y
    refuses(Block(lambda m,x: m.p(m.a(x), x.relu()) + m.b(x), p=PlusAsks(), a=conv(padding=1), b=conv(k=1)),
        others=more_sizes, why="can't trace")

def test_terms_of_two_values():
    "Of each value those that come from it"
    def f(m, x):
        y = x.relu()
        return m.a(x) + m.c(y) + m.b(x) + m.d(y)
    rep = merge(Block(f, a=conv(padding=1), b=conv(k=1), c=conv(padding=1), d=conv(k=1)), others=more_sizes)
    assert len(rep.merged)==1
    def g(m, x):
        y = x.relu()
        return (m.a(x) + y.sin() + m.b(x)) + (m.c(y) + x.sin() + m.d(y))
    merges(Block(g, a=conv(padding=1), b=conv(k=1), c=conv(padding=1), d=conv(k=1)), others=more_sizes, n=2)
    def h(m, x):
        y = x.relu()
        return x.sin() + m.a(x) + m.b(x) + y.sin() + m.c(y) + y.cos() + m.d(y)
    merges(Block(h, a=conv(padding=1), b=conv(k=1), c=conv(padding=1), d=conv(k=1)), others=more_sizes, n=2)

def test_terms_one_after_the_other():
    "The sum goes into another one, in the same module"
    def parts(): return dict(a=normed(conv(padding=1)), b=conv(k=1), c=conv(padding=1), n=nn.BatchNorm2d(4))
    def f(m, x):
        y = m.a(x) + x.relu() + m.b(x)
        return m.c(y) + y.relu() + m.n(y)
    merges(Block(f, **parts()), others=more_sizes, n=2)
    def g(m, x):
        y = m.a(x) + m.b(x)
        return m.c(y) + y.relu() + m.n(y)
    merges(Block(g, **parts()), others=more_sizes, n=2)

def test_terms_norm_stays_with_what_it_is_beside():
    "A norm behind the sum still folds as it can"
    rep = some(lambda m,x: m.n(m.a(x) + x.relu() + m.b(x)), members=['a.0', 'b.0'])
    assert [o.name for o in rep.kept]==['0.n']

def test_terms_linear():
    f = lambda m,x: m.a(x) + x.relu() + m.b(x) - x
    for x in batch(3, 4), batch(2, 3, 4): merges(Block(f, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), x)

def test_terms_of_integers():
    "Sums of other dtypes are none"
    def f(m, x): return (m.a(x).long() + x.long() + m.b(x).long()).double()
    refuses(Block(f, a=conv(padding=1), b=conv(k=1)))
    def g(m, x): return m.a(x) + x.relu().float() + m.b(x)
    refuses(Block(g, a=conv(padding=1), b=conv(k=1)))

def test_terms_report():
    "The layer, in place of what it replaces; what stays has no row"
    rep = some(lambda m,x: m.a(x) + x.relu() + m.b(x), members=['a.0', 'b.0'])
    assert rep.merged[0].name=='0.a_merged' and rep.merged[0].multiplications>0 and not rep.unmerged
    block = Block(lambda m,x: m.a(x) + x.relu() + m.b(x), a=conv(padding=1), b=conv(k=1))
    folded = BN_Folder(merge=True).fold(live(nn.Sequential(block, nn.ReLU())), images)
    assert [n for n,_ in folded.named_modules()]==['', '0', '0.a_merged', '1']

def test_terms_with_gradient():
    "They train on as they would"
    net = live(nn.Sequential(Block(lambda m,x: m.a(x) + x.relu() + m.b(x), a=conv(padding=1), b=conv(k=1)), nn.ReLU()))
    x = images.clone().requires_grad_()
    folded = BN_Folder(merge=True).fold(net, images)
    grads = [torch.autograd.grad(m(x).pow(2).sum(), x)[0] for m in (net, folded)]
    assert difference([grads[0]], [grads[1]])<1e-9
    grads = [torch.autograd.grad(m(x).pow(2).sum(), x)[0] for m in (net, folded)]
    assert difference([grads[0]], [grads[1]])<1e-9

def test_root_that_is_a_graph():
    "A graph merges like any forward"
    block = Block(lambda m,x: m.a(x) + x.relu() + m.b(x) + m.n(x), a=conv(padding=1), b=conv(k=1), n=nn.BatchNorm2d(4))
    for net in live(block), torch.fx.symbolic_trace(live(block)):
        folder = BN_Folder(merge=True, verify=False)
        want,folded = tensors(net, images),folder.fold(net, images)
        assert difference(want, tensors(folded, images))<1e-9
        assert len(folder.report.merged)==1 and not folder.report.kept
        assert difference(want, tensors(net, images))==0
        folder.fold(net, images, inplace=True)
        assert difference(want, tensors(net, images))<1e-9
        assert not folder.report.merged and "the model's own forward" in folder.report.sums[0].reason
