"""Forwards that torch.fx writes anew, for a merge or a scale: all that a trace can't know, and that undo is exact
whatever came in between"""
from copy import deepcopy
import numpy as np, pytest, torch
from torch import nn
from torch.nn.utils import prune
from torchvision.ops import StochasticDepth
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import Block, batch, check_same, conv, images, state
from test_scales import gamma

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = gamma(4, 1, 1)
    def forward(self, x): return x*self.g

class Sum(nn.Module):
    "Two layers that can be one"
    def __init__(self, **children):
        super().__init__()
        self.a,self.c = conv(padding=1),conv(padding=1)
        for k,m in children.items(): setattr(self, k, m)
    def forward(self, x): return self.a(x) + self.c(x)

def stays(model, *xb, others=(), why='', verify=False, **options):
    """Folding `model` changes nothing of it, nor of what it computes for `xb` and `others`; returns the report and the
    folded model"""
    live(model)
    options = dict(merge=True, layer_scale=True) | options
    xs,before,folder = [xb, *others],state(model),BN_Folder(verify=verify, **options)
    with torch.no_grad():
        want = [model(*x) for x in xs]
        folder.plan(model, *xb)
        folded = folder.fold(model, *xb)
        check_same(before, state(model))
        for x,w in zip(xs, want): assert difference([w], [folded(*x)])<1e-9, str(folder.report)
    reasons = [r.reason for r in (*folder.report.rows, *folder.report.sums) if r.reason]
    assert any(why in r for r in reasons) if why else not reasons, reasons
    return folder.report,folded

def test_two_folds_in_place():
    rep = Block(lambda m,x: m.a(x) + m.b(x) + x, a=nn.Sequential(conv(padding=1), nn.BatchNorm2d(4)), b=conv(k=1))
    model = live(nn.Sequential(rep, Scale(), nn.ReLU()))
    before,folder = state(model),BN_Folder(layer_scale=True, merge=True)
    for _ in range(2): folder.fold(model, images, inplace=True)
    folder.unfold()
    check_same(before, state(model))
    for _ in range(2): folder.fold(model, images, inplace=True)
    model.float()
    folder.unfold()
    assert {p.dtype for p in model.parameters()}=={torch.float32}

def test_buffers_of_parts():
    "A trace reads what belongs to a part that stays a part; neither the original nor its state dict changes"
    class Pos(nn.Module):
        def __init__(self, plain):
            super().__init__()
            t = torch.rand(1, dtype=torch.float64)
            if plain: self.t = t
            else: self.register_buffer('t', t, persistent=False)
        def forward(self, x): return (x.relu()+1).relu()
    def scaled(m, x): return m.g*m.a(m.pos(x)) + m.pos.t
    def summed(m, x):
        p = m.pos(x)
        return m.a(p) + m.c(p) + m.pos.t
    for plain in (False, True):
        for f,more in (scaled, dict(g=gamma(4, 1, 1))),(summed, dict(c=conv())):
            block = Block(f, pos=Pos(plain), a=conv(), **more)
            keys = nn.Sequential(block).state_dict().keys()
            _,folded = stays(nn.Sequential(block, nn.Identity()), images)
            assert nn.Sequential(block).state_dict().keys()==keys
            assert folded.state_dict().keys()<=keys|{'0.a.bias', '0.a_merged.weight', '0.a_merged.bias'}

class Choose(nn.Module):
    def __init__(self, *heads):
        super().__init__()
        self.conv,self.heads = conv(),nn.ModuleList(heads)
    def forward(self, x, k): return self.heads[k](self.conv(x)).relu()

def test_choice():
    "The scale of one of several parts doesn't go into what all of them have"
    stays(Choose(Scale(), Scale()), images, 0, others=[(images, 1)], why='an input other than a tensor')
    def head(): return Block(lambda m,x: m.conv((x*m.g).relu()), conv=conv(), g=gamma(4, 1, 1))
    stays(Choose(head(), head()), images, 0, others=[(images, 1)], why='an input other than a tensor')
    def own(): return Block(lambda m,x: m.g*m.conv(x), conv=conv(), g=gamma(4, 1, 1))
    rep,_ = stays(Choose(own(), own()), images, 0, others=[(images, 1)], why='never runs it')
    assert len(rep.folded)==1

@pytest.mark.parametrize('f', [
    lambda y,flag: y.sigmoid() if flag is None else y.relu(), lambda y,flag: y if flag is None else y+flag,
    lambda y,flag: y.sigmoid() if isinstance(flag, type(None)) else y], ids=['none', 'mask', 'type'])
@pytest.mark.parametrize('scale', [False, True])
def test_optional(f, scale):
    class Inner(Sum):
        def forward(self, x, flag): return f(self.g*self.a(x) if scale else self.a(x) + self.c(x), flag)
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = Inner(g=gamma(4, 1, 1))
            if scale: del self.b.c # which would look like another choice
        def forward(self, x, flag=None): return self.b(x, flag)
    stays(Outer(), images, images, others=[(images,)], why="torch.fx can't trace 'b'")

def test_autocast():
    class Exact(Sum):
        def forward(self, x):
            with torch.autocast('cpu', enabled=False): return self.a(x) + self.c(x)
    stays(nn.Sequential(Exact(), nn.Identity()), images, why='autocast')

@pytest.mark.parametrize('name', ['graph', 'code', 'meta', 'recompile', 'to_folder'])
def test_names_of_fx(name):
    class Named(Sum):
        def forward(self, x): return (self.a(x) + self.c(x)).relu()*getattr(self, name)
    stays(nn.Sequential(Named(**{name: gamma(1)}), nn.Identity()), images, why='for itself')

@pytest.mark.parametrize('use', [
    lambda b,x: b(x).relu()*b.dim, lambda b,x: b(x) if isinstance(b, Sum) else x, lambda b,x: b.more(b(x).relu()),
    lambda b,x: b(x).relu()*len(b.sizes)], ids=['attribute', 'class', 'method', 'list'])
def test_looked_at(use):
    "The forward around a block asks it for what a module of torch.fx hasn't got"
    class Asked(Sum):
        dim,sizes = 2,[1, 2]
        def more(self, y): return y
    block = Block(lambda m,x: use(m.b, x).relu(), b=Asked())
    stays(nn.Sequential(block), images, why="'0.b' does something else when torch.fx traces it")

def test_numpy_number():
    class Root(Sum):
        def forward(self, x): return (self.a(x) + self.c(x)).sigmoid()*np.sqrt(2.)
    stays(nn.Sequential(Root(), nn.Identity()), images, why='numbers of numpy')

def test_part_out_of_sight():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv,self.g = conv(),gamma(4, 1, 1)
            self.parts = [Block(lambda m,x: x*m.g)]
            self.parts[0].g = self.g
        def forward(self, x): return self.parts[0](self.conv(x))
    stays(nn.Sequential(Hidden(), nn.Identity()), images, why='the forward of ')

def test_weight_of_a_norm():
    "It also multiplies channels elsewhere"
    def f(m, x): return m.d(m.bn(m.conv(x)).relu()*m.bn.weight.view(-1, 1, 1))
    stays(nn.Sequential(Block(f, conv=conv(), bn=nn.BatchNorm2d(4), d=conv())), images, why='also read')

def test_written_part():
    "Parts of one tensor: PyTorch lets nobody write into them where there are gradients"
    def f(m, x):
        a,b = m.conv(x).chunk(2, 1)
        return torch.relu_(m.bn(a)) + b
    model = nn.Sequential(Block(f, conv=conv(), bn=nn.BatchNorm2d(2)))
    _,folded = stays(model, images, why='writes into its input')
    folded(images).sum().backward()

def test_flags_follow():
    "What was set aside goes into training or evaluation with the model"
    block = Block(lambda m,x: m.a(x) + m.n(x), a=conv(padding=1), n=nn.BatchNorm2d(4))
    model = live(nn.Sequential(conv(), nn.BatchNorm2d(4), block, nn.ReLU()))
    want,folder = model(images),BN_Folder(merge=True)
    model.train()
    folder.fold(model, images, inplace=True)
    model.eval()
    folder.unfold()
    assert not any(m.training for m in model.modules()) and torch.equal(model(images), want)
    model[2].n.train()
    folder.fold(model, images, inplace=True)
    folder.unfold()
    assert [n for n,m in model.named_modules() if m.training]==['2.n']

def test_parts_that_act_in_training():
    "A stochastic depth stays a part where a forward is written anew, and does in training what it did"
    parts = dict(a=conv(padding=1), drop=StochasticDepth(1., 'row'))
    scaled = Block(lambda m,x: m.drop(m.g*m.a(x)).relu() + x, g=gamma(4, 1, 1), **parts)
    summed = Block(lambda m,x: m.drop(m.a(x) + m.c(x)).relu() + x, c=conv(padding=1), **parts)
    for block in scaled, summed:
        model = nn.Sequential(block, nn.ReLU())
        report,folded = stays(model, images)
        assert report.folded or report.merged
        assert difference([model.train()(images)], [folded.train()(images)])<1e-9

def test_scale_of_a_sum():
    "It is among the members of the merged layer, and not reported as kept"
    block = Block(lambda m,x: m.g*(m.a(x) + m.b(x) + x), a=conv(padding=1), b=conv(k=1), g=gamma(4, 1, 1))
    rep,_ = stays(nn.Sequential(block, nn.ReLU()), images)
    assert not rep.kept and '0.g' in rep.merged[0].members and rep.folded[0].into==['0.a_merged']

def test_registered_twice():
    block = Block(lambda m,x: m.g*m.conv(x), conv=conv(), g=gamma(4, 1, 1))
    model = live(Block(lambda m,x: m.p(x), p=block, q=block))
    folded = BN_Folder(layer_scale=True).fold(model, images)
    assert folded.p is folded.q and 'g' not in dict(folded.p.named_parameters())
    assert difference([model(images)], [deepcopy(folded)(images)])<1e-9

def test_other_sizes(): stays(nn.Sequential(Sum(), nn.ReLU()), images, others=[(batch(1, 4, 3, 3),)])

def test_products():
    "An ordinary square beside a sum is nothing to merge"
    stays(nn.Sequential(Block(lambda m,x: (lambda y: y*y + x)(m.a(x)), a=conv(padding=1)), nn.ReLU()), images)
    stays(nn.Sequential(Block(lambda m,x: m.a(x) + x*x, a=conv(padding=1)), nn.ReLU()), images)

def test_arrays_as_arguments():
    "Numbers that aren't Python's, anywhere in the pass"
    report,_ = stays(nn.Sequential(Sum(), Block(lambda m,x: x[:,np.arange(4)[::-1].copy()].relu())), images)
    assert report.merged

def test_attributes_set_by_others():
    "What the model tells a part before it calls it, each time"
    class Model(nn.Module):
        def __init__(self, f, **parts):
            super().__init__()
            self.block = Block(f, **parts)
            self.block.h = 0
        def forward(self, x):
            self.block.h = x.shape[-1]
            return self.block(x)
    def f(m, x): return (m.a(x) + m.c(x)).flatten(2).unflatten(2, (-1, m.h)).cumsum(3)
    def g(m, x): return (m.a(x)*m.g).flatten(2).unflatten(2, (-1, m.h)).cumsum(3)
    for model in Model(f, a=conv(padding=1), c=conv(padding=1)), Model(g, a=conv(padding=1), g=gamma(4, 1, 1)):
        stays(model, images, others=[(batch(2, 4, 4, 8),)], why='a forward sets attributes of')

def test_attributes_set_further_inside():
    "A factor that the model hands to a part of a part, each time"
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            part = Block(lambda m,x: m.a(x)*m.k, a=conv(padding=1))
            self.block = Block(lambda m,x: m.p(x) + m.c(x), p=part, c=conv(padding=1))
        def forward(self, x):
            self.block.p.k = 2. if x.sum()>0 else 3.
            return self.block(x).relu()
    x = images.abs()
    stays(Model(), x, others=[(-x,), (x,)], why="a forward sets attributes of 'block.p'")

def test_dtypes_under_autocast():
    "Layers that only agree with each other because their weights are cast"
    class Cast(nn.Sequential):
        def forward(self, x):
            with torch.autocast('cpu', torch.bfloat16): return super().forward(x)
    model,folder = Cast(Sum(c=conv(padding=1).bfloat16()), nn.ReLU()).eval(),BN_Folder(merge=True)
    x = images.bfloat16()
    assert torch.equal(folder.fold(model, x)(x), model(x))
    assert [r.reason for r in folder.report.sums]==['its weights have different dtypes']

def test_out_of_sight_in_a_part():
    "What is added up in a part that also does something else, and goes on outside: it becomes one layer in the part"
    part = Block(lambda m,x: (m.a(x) + m.c(x), x.relu()), a=conv(padding=1), c=conv(padding=1))
    def f(m, x):
        s,z = m.p(x)
        return (s + m.d(x)).relu() + z
    model = nn.Sequential(Block(f, p=part, d=conv(padding=1)), nn.ReLU())
    report,_ = stays(model, images)
    assert [o.members for o in report.merged]==[['0.p.a', '0.p.c']]
    def g(m, x):
        s,z = m.p(x)
        return (s + x).relu() + z
    part = Block(lambda m,x: (m.a(x)*2, x.relu()), a=conv(padding=1))
    hidden = "the forward of '0' doesn't show what goes in"
    stays(nn.Sequential(Block(g, p=part), nn.ReLU()), images, why=hidden)

def test_arguments_that_are_no_tensors():
    "A trace would have them as they are in the example"
    class Model(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block
        def forward(self, x, mode): return self.block(x, mode).relu()
    class Options(Block):
        def forward(self, x, mode): return self.function(self, x, mode)
    def asked(m, x, mode): return m.a(x)+m.c(x) if mode is True else m.a(x)
    def looked_up(m, x, mode): return {True: m.a(x)+m.c(x)}.get(mode, x)
    for f in asked, looked_up:
        model = Model(Options(f, a=conv(padding=1), c=conv(padding=1)))
        stays(model, images, True, others=[(images, False)], why='does something else when torch.fx traces it')

def test_padding_by_hand():
    "A convolution that pads the sides differently, as PyTorch itself has no way to say"
    a = conv(padding=1, padding_mode='reflect')
    a._reversed_padding_repeated_twice = [2, 0, 1, 1]
    block = Block(lambda m,x: m.a(x) + m.c(x), a=a, c=conv(padding=1, padding_mode='reflect'))
    stays(nn.Sequential(block, nn.ReLU()), images, why='pads one side more')

def test_out_of_order():
    "Of two folders that changed a model, the later one gives back first"
    model = live(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)))
    before,first,second = state(model),BN_Folder(forward=False),BN_Folder()
    first.fold(model, images, inplace=True)
    second.fold(model, images, inplace=True)
    now = state(model)
    with pytest.raises(FoldError, match="'2' has been changed since"): first.unfold()
    check_same(now, state(model))
    second.unfold()
    first.unfold()
    check_same(before, state(model))

def test_changed_since():
    wrap,drop = (lambda m: setattr(m, '0', nn.Sequential(m[0]))),(lambda m: m.__delitem__(2))
    def thin(m): prune.random_unstructured(m[0], 'weight', .5)
    for change in wrap, drop, thin:
        model = live(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(bias=False), nn.BatchNorm2d(4), nn.ReLU()))
        folder = BN_Folder()
        folder.fold(model, images, inplace=True)
        change(model)
        now = state(model)
        with pytest.raises(FoldError, match="has been changed since"): folder.unfold()
        check_same(now, state(model))

def test_one_part_cast():
    "The norms of other parts keep their bits"
    model = live(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)))
    kept,folder = deepcopy(model[4].state_dict()),BN_Folder()
    folder.fold(model, images, inplace=True)
    model[0].float()
    folder.unfold()
    assert model[0].weight.dtype==torch.float32
    assert all(torch.equal(v, kept[k]) and v.dtype==kept[k].dtype for k,v in model[4].state_dict().items())

def test_bad_arguments():
    for bad in (dict(layers=nn.Conv2d), dict(layers='Conv2d'), dict(layers=['Conv2d']),
            dict(handlers={nn.Conv2d: conv})):
        with pytest.raises(FoldError, match=f"'{[*bad][0]}'.*: give a"): BN_Folder(**bad)
    with pytest.raises(FoldError, match='give what'): BN_Folder().load(Sum(), None)
    assert BN_Folder(layers=(o for o in [nn.Conv2d])).rules.into==(nn.Conv2d,)
