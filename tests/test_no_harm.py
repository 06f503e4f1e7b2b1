"""What looking at a model, and folding it, must leave as it was. A notebook can't teach this: it is what nobody should
have to think of"""
import collections, functools, itertools, os, pickle, random, sys, threading, types, warnings, weakref
from collections import OrderedDict, defaultdict, deque
from copy import deepcopy
import numpy as np, pytest, torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
import fastfold
from fastfold.all import BN_Folder, FoldError
from fastfold.core.passes import record_pass
from fastfold.core.snapshot import Snapshot

package = os.path.dirname(fastfold.__file__)
x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

def live(model, seed=0):
    "`model` in float64 and evaluation, with random weights and statistics in its norms"
    torch.manual_seed(seed)
    for m in model.modules():
        if getattr(m, 'running_var', None) is not None:
            for t in m.running_mean, m.weight, m.bias: nn.init.uniform_(t, -2, 2)
            nn.init.uniform_(m.running_var, .1, 3)
    return model.double().eval()

class Net(nn.Module):
    "A convolution and its norm; `also` does something else in the forward, with what `has` brings"
    def __init__(self, also=lambda self, y: y, **has):
        super().__init__()
        self.conv,self.bn,self.also = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4),also
        for k,v in has.items(): setattr(self, k, v)
    def forward(self, x): return torch.relu(self.also(self, self.bn(self.conv(x))))

def held(model):
    "All that `model` holds, in a form that `==` compares"
    noted = Snapshot(model).held
    boxes = [(id(o), [id(v) for v in content]) for o,content in noted.containers.full]
    boxes += [(id(o), []) for o in noted.containers.empty if not o]
    tensors = {k:(id(t), t.dtype, t.requires_grad, t.detach().clone().numpy().tobytes())
        for k,(t,_) in noted.tensors.memory.items()}
    params = [(id(p), trains, id(g)) for p,trains,g in noted.tensors.params]
    of_file = len(bank),tally,stats.n,len(stats.keys)
    arrays,cells = [a.tobytes() for a,_ in noted.arrays.noted],[(id(c), id(v)) for c,v in noted.cells.noted]
    return params,of_file,sorted(boxes),tensors,arrays,cells

# ways of keeping something, each done to a model that the library has never seen
def install(self, y):
    if not self.ready:
        self.conv.register_forward_hook(lambda m, i, o: o+1)
        self.bn.register_forward_pre_hook(lambda m, i: None)
        self.ready = True
    return y
def append(self, y): self.bank.append(y.detach()); return y
def rotate(self, y): self.queue.popleft(); self.queue.append(y.mean()); return y
def nested(self, y): self.box['a'][0].add(len(self.box['a'][0])); self.box['b'] = y; return y
def update(self, y): self.average.mul_(.9).add_(y.detach().mean()); return y+self.average
def in_object(self, y): self.cache.keys.append(y); self.cache.n += 1; return y
def of_class(self, y): type(self).shared['n'] = type(self).shared.get('n', 0)+1; type(self).calls += 1; return y
def new_module(self, y):
    self.extra = nn.Linear(2, 2)
    self.parts.append(nn.Linear(1, 1))
    self.register_buffer('seen', y)
    return y
def array(self, y): self.counts += 1; return y
def generated(self, y): return y + torch.rand(1, generator=self.gen, dtype=y.dtype) + self.rng.random()
def grow(self, y): self.default[len(self.default)]; return y
def defaults(self, y, seen=[]): seen.append(y); return y # as in a cache of a function
bank,tally,stats = [],0,None # what a script or a notebook has
def of_script(self, y):
    global tally
    tally += 1
    return remember(y)
def remember(y): bank.append(y); stats.keys.append(y); stats.n += 1; return y

def namespace(self, y): self.ns.n += 1; self.ns.seen = y; return y
def order(self, y): self.box.move_to_end('a'); return y
def swapped(self, y): self.queue.data = self.queue.data+1; return y
def enqueued(self, y): self.queue[:y.shape[0]] += 1; return y
def halved(self, y): self.small.data = self.small.data.half(); return y
def in_class(self, y): type(self).average.add_(1); type(self).counts[0] += 1; type(self.helper).n += 1; return y
def thaw(self, y): self.conv.weight.requires_grad_(False).grad = None; self.conv.bias.grad = y.mean((0,2,3)); return y
def slot(self, y): self.cache.late = y; return y
@functools.cache
def table(n): return [n]
def cached(self, y): self.table(y.shape[0]); return y
def tells(self, y): tells.calls = getattr(tells, 'calls', 0)+1; return y
def other_kind(self, y): self.bn.__class__ = nn.SyncBatchNorm; return y
def with_grads(model):
    for p in model.parameters(): p.grad = torch.ones_like(p)
    return model

class Cache:
    n = 0
    def __init__(self): self.keys,self.n = [],0
class Slotted:
    __slots__ = ('keys', 'n', 'late', '__hidden')
    def __init__(self): self.keys,self.n = [],0
class Shares(Net):
    shared,calls = {},0
class Averages(Net):
    average,counts,helper = torch.zeros(1),np.zeros(1),Cache()
class Keeps(Net):
    "With the methods that are given to others as functions above"
    def forward(self, x): return of_script(self, super().forward(x))
def memo():
    class Memo(Net):
        def forward(self, x, calls=[]):
            calls.append(x.shape)
            return super().forward(x)
    return Memo()
class Bank(list): "A list that tells how often it was written to"

stats = Cache()
class Counter:
    "A hook that is an object"
    def __init__(self): self.n,self.outs = 0,[]
    def __call__(self, m, i, o): self.n += 1; self.outs.append(o)
    def method(self, m, i, o): self.n += 1; self.outs.append(o)

def with_hook(kind):
    model,c,outs,n = Net(),Counter(),[],0
    def closure(m, i, o):
        nonlocal n
        n += 1
        outs.append(o)
    hooks = dict(object=c, method=c.method, partial=functools.partial(c.method), closure=closure)
    model.conv.register_forward_hook(hooks[kind])
    return model

keepers = dict(
    hooks=lambda: Net(install, ready=False), bank=lambda: Net(append, bank=[]),
    subclass=lambda: Net(append, bank=Bank()),
    bounded=lambda: Net(append, bank=deque(maxlen=2)), queue=lambda: Net(rotate, queue=deque([torch.zeros(1)])),
    nested=lambda: Net(nested, box=OrderedDict(a=({0},))),
    plain_tensor=lambda: Net(update, average=torch.zeros(1, dtype=torch.float64)),
    large_tensor=lambda: Net(update, average=torch.zeros(2**19, dtype=torch.float64)[:1].expand(1)),
    object=lambda: Net(in_object, cache=Cache()), slots=lambda: Net(in_object, cache=Slotted()),
    cls=lambda: Shares(of_class), modules=lambda: Net(new_module, parts=nn.ModuleList()),
    array=lambda: Net(array, counts=np.zeros(2)), namespace=lambda: Net(namespace, ns=types.SimpleNamespace(n=0)),
    order=lambda: Net(order, box=OrderedDict(a=1, b=2)), swapped=lambda: Net(swapped, queue=torch.zeros(2**19)),
    enqueued=lambda: Net(enqueued, queue=torch.zeros(2**19)), halved=lambda: Net(halved, small=torch.zeros(2)),
    in_class=lambda: Averages(in_class), grads=lambda: with_grads(Net(thaw).double()),
    slot=lambda: Net(slot, cache=Slotted()), cached=lambda: Net(cached, table=table), tells=lambda: Net(tells),
    generator=lambda: Net(generated, gen=torch.Generator(), rng=random.Random(0)),
    default=lambda: Net(grow, default=defaultdict(list)), defaults=lambda: Net(defaults),
    script=lambda: Net(of_script), script_class=Keeps, memo=memo,
    **{f'hook_{k}':functools.partial(with_hook, k) for k in ('object', 'method', 'partial', 'closure')})

def made(f):
    torch.manual_seed(1)
    return f()

@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', keepers)
def test_kept_in_the_model(name, train):
    "whatever a forward stores, wherever: afterwards all is as it was, and the same objects"
    model = live(keepers[name]()).train(train)
    before,rng = held(model),torch.get_rng_state()
    folder = BN_Folder()
    folder.plan(model, x)
    assert held(model)==before
    folder.fold(model, x)
    assert held(model)==before and torch.equal(torch.get_rng_state(), rng)
    folder.fold(model, x, inplace=True)
    folder.unfold()
    assert held(model)==before
    assert Shares.shared=={} and not Shares.calls and not Averages.average and not Averages.counts and not Cache.n
    assert not table.cache_info().currsize and not vars(tells)

@pytest.mark.parametrize('name', keepers)
def test_cold_is_as_warm(name):
    "a model that was never run is folded as one that was, and returns what it would have returned"
    want,model,warm = [live(made(keepers[name])) for _ in range(3)]
    with torch.no_grad(): warm(x)
    Shares.shared.clear()
    Shares.calls = 0
    a,b = BN_Folder(),BN_Folder()
    folded = a.fold(model, x)
    b.fold(warm, x)
    assert [o.reason for o in a.report.rows]==[o.reason for o in b.report.rows]
    with torch.no_grad():
        for _ in range(2): # what is installed by the first call is so once, in the original and in the copy
            y = want(x)
            assert torch.equal(model(x), y)
            torch.testing.assert_close(folded(x), y)
    Shares.shared.clear()
    Shares.calls = 0

def test_hook_installed_on_the_norm():
    "by the first call: it is seen although it is gone after the pass"
    model = live(keepers['hooks']())
    assert 'hook' in BN_Folder().plan(model, x).kept[0].reason

# writing into parameters
writers = dict(
    data=lambda s, y: (s.conv.weight.data.mul_(2), y)[1], no_grad=lambda s, y: (s.conv.weight.detach().add_(1), y)[1],
    view=lambda s, y: (s.conv.weight.detach()[0].zero_(), y)[1], relu=lambda s, y: (s.act(s.conv.bias.detach()), y)[1],
    replaced=lambda s, y: (setattr(s.conv.weight, 'data', s.conv.weight.data*2), y)[1],
    foreach=lambda s, y: (torch._foreach_mul_([s.conv.weight.detach()], 2), y)[1],
    out=lambda s, y: (torch.neg(s.bn.bias, out=s.bn.bias.detach()), y)[1])

def clamps(s, y):
    with torch.no_grad(): s.scale.clamp_(0, 4)
    s.scale.data = s.scale.data.clamp(0, 4)
    return y*s.scale

def test_writes_the_same_numbers():
    "into a parameter of its own, as models that clamp a temperature do"
    model = live(Net(clamps, scale=nn.Parameter(torch.ones(1))))
    before = held(model)
    for verify in False,True:
        folder = BN_Folder(verify=verify)
        folded = folder.fold(model, x)
        assert held(model)==before and len(folder.report.folded)==1
        with torch.no_grad(): torch.testing.assert_close(folded(x), model(x))
    nn.init.constant_(model.scale, 5)
    with pytest.raises(FoldError, match="writes into its parameter 'scale'"): BN_Folder().plan(model, x)
    assert model.scale==5

class OwnConv(nn.Conv2d): "Folded as any other"

@pytest.mark.parametrize('conv', [nn.Conv2d, OwnConv])
def test_clamps_what_a_fold_changes(conv):
    "Numbers that stay now wouldn't once they are scaled"
    def clip(s, y): s.conv.weight.data.clamp_(-1, 1); return y
    model = Net(clip)
    model.conv = conv(3, 4, 3)
    with pytest.raises(FoldError, match="writes into its parameter 'conv.weight'"):
        BN_Folder(verify=False).fold(live(model), x)

def caught(s, y):
    try: s.conv.weight.data.mul_(2)
    except Exception: pass
    return y

@pytest.mark.parametrize('name', [*writers, 'caught'])
@pytest.mark.parametrize('verify', [False, True])
def test_writes_into_parameters(name, verify):
    model = live(Net(caught if name=='caught' else writers[name], act=nn.ReLU(inplace=True)))
    before = held(model)
    for f in BN_Folder(verify=verify).plan, BN_Folder(verify=verify).fold:
        with pytest.raises(FoldError, match="writes into its parameter '(conv|bn)"): f(model, x)
        assert held(model)==before

def test_evaluation_writes_into_parameters():
    "as LoRA does: `eval` merges weights, and `train` takes them apart again"
    class Lora(Net):
        def train(self, mode=True):
            if self.training!=mode: self.conv.weight.data += .1 if not mode else -.1
            return super().train(mode)
    model = live(Lora()).train()
    before = held(model)
    BN_Folder().plan(model, x)
    assert held(model)==before

def test_embedding_renorm():
    "PyTorch's own writing into a parameter is taken back"
    model = live(nn.Sequential(nn.Embedding(5, 4, max_norm=.1), nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model[2] = live(nn.BatchNorm1d(8))
    ids = torch.arange(8).remainder(5).view(1, 8)
    before = held(model)
    assert len(BN_Folder().plan(model, ids).rows)==1
    assert held(model)==before

@pytest.mark.parametrize('make', [
    nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed(make):
    "reading one in training mode changes the vectors of spectral_norm"
    model = live(nn.Sequential(make(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))).train()
    before = held(model)
    for options in {}, dict(merge=True), dict(layer_scale=True):
        folder = BN_Folder(**options)
        folder.plan(model, x)
        folder.fold(model, x)
        assert held(model)==before

def test_modes_of_feature_extractors():
    "which a copy that torch.fx makes has lost"
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    import torchvision
    net = torchvision.models.mobilenet_v3_small()
    for model in extraction.create_feature_extractor(net, ['features.4', 'classifier.3']),torch.fx.symbolic_trace(net):
        model = live(model)
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        folder = BN_Folder()
        folded = folder.fold(model, images)
        assert not any(m.training for m in folded.modules()) and not folder.report.kept
        with torch.no_grad(): a,b = model(images),folded(images)
        outs = [o.values() if isinstance(o, dict) else [o] for o in (a, b)]
        for t,u in zip(*outs): torch.testing.assert_close(t, u, rtol=1e-9, atol=1e-9)
        model.train()
        folded = folder.fold(model, images)
        modes = {n:m.training for n,m in model.named_modules()}
        assert {n:m.training for n,m in folded.named_modules() if n in modes}==modes

# copies
def test_lambda_over_self():
    "The copy would run the original's layers"
    class Lambda(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.conv,self.bn = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4)
            def default(x, s=self): return s.bn(s.conv(x))
            self.f = dict(closure=lambda x: self.bn(self.conv(x)), default=default,
                part=functools.partial(default))[kind]
        def forward(self, x): return self.f(x)
    for kind in 'closure','default','part':
        model = live(Lambda(kind))
        with torch.no_grad(): want = model(x)
        for verify in False,True:
            with pytest.raises(FoldError, match=r"runs '(bn|conv)' of the original.*inplace=True"):
                BN_Folder(verify=verify).fold(model, x)
        folder = BN_Folder()
        folder.fold(model, x, inplace=True)
        with torch.no_grad(): torch.testing.assert_close(model(x), want)
        assert isinstance(model.bn, nn.Identity)
    harmless = live(Net(also=lambda s, y: y))
    other = nn.ReLU()
    harmless.act = lambda y: other(y)
    BN_Folder().fold(harmless, x)

def bound(m): m.forward = torch.no_grad()(m.forward)
def compiled(m): m.forward = torch.compile(m.forward, backend='eager')
def in_list(m): m.also = lambda self, y, ms=[m.conv, m.bn]: ms[1](ms[0](x)) + 0*y
def weak(m):
    m.__dict__['parent'] = weakref.ref(m)
    m.also = lambda self, y: self.parent().bn(self.parent().conv(x)) + 0*y

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('spoil', [bound, compiled, in_list, weak])
def test_copy_that_runs_the_original(spoil, verify):
    "in whatever way it holds on to it, is refused"
    model = live(Net())
    spoil(model)
    before = held(model)
    with pytest.raises(FoldError, match=r"runs '(bn|conv)' of the original.*inplace=True"):
        BN_Folder(verify=verify).fold(model, x)
    assert held(model)==before

class Aliases(nn.Module):
    "With its norm in a second place, where the forward looks"
    def __init__(self, kind):
        super().__init__()
        self.conv,self.bn,self.act = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4),nn.ReLU()
        layers = [self.conv, self.bn]
        self.get = dict(list=layers, dict={0: self.conv, 1: self.bn}, closure=lambda i: layers[i], tuple=tuple(layers),
            deque=collections.deque(layers), object=Cache(), attribute=None,
            weak=lambda i, r=weakref.ref(self.bn): [self.conv, r()][i])[kind]
        if kind=='object': self.get.n = self.bn
        if kind=='attribute': self.__dict__['norm'] = self.bn
    def layer(self, i):
        if self.get is None: return self.norm if i else self.conv
        if isinstance(self.get, Cache): return self.get.n if i else self.conv
        return self.get(i) if callable(self.get) else self.get[i]
    def forward(self, x): return self.act(self.layer(1)(self.layer(0)(x)))

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('kind', ['list', 'dict', 'closure', 'tuple', 'deque', 'object', 'weak', 'attribute'])
def test_held_in_a_second_place(kind, verify):
    "a norm is replaced there, too, or stays where it can't be"
    model = live(Aliases(kind))
    with torch.no_grad(): want = model(x)
    before,folder = held(model),BN_Folder(verify=verify)
    folder.fold(model, x, inplace=True)
    with torch.no_grad(): torch.testing.assert_close(model(x), want)
    if kind not in ('tuple', 'weak'): assert isinstance(model.layer(1), nn.Identity)
    else: assert 'besides its parent holds it' in folder.report.kept[0].reason
    back = pickle.loads(pickle.dumps(folder)) if kind in ('list', 'dict', 'deque', 'object', 'attribute') else None
    folder.unfold()
    assert held(model)==before
    if back:
        with torch.no_grad(): assert torch.equal(back.unfold()(x), want)
        assert isinstance(back.model.layer(1), nn.BatchNorm2d)
    try: folded = BN_Folder(verify=verify).fold(model, x)
    except FoldError: assert kind in ('closure', 'weak')
    else:
        with torch.no_grad(): torch.testing.assert_close(folded(x), want)
        assert isinstance(folded.bn, nn.Identity)
        with pytest.raises(FoldError, match="besides its parent holds bn"): BN_Folder().load(model, folded.state_dict())
        assert held(model)==before

@pytest.mark.parametrize('kind', [tuple, set, list, lambda ms: [('norm', m) for m in ms]])
def test_held_without_use(kind):
    "is no reason for anything: what is in a list that no forward looks at may be meant for other things"
    model = live(nn.Sequential(Net(), nn.ReLU()))
    model.norms = kind([model[0].bn])
    before,folder = held(model),BN_Folder()
    folder.fold(model, x, inplace=True)
    assert len(folder.report.folded)==1 and kind([model[0].conv])!=model.norms
    assert str(model.norms).count('BatchNorm2d')==1
    folder.unfold()
    assert held(model)==before

@pytest.mark.parametrize('change', [
    list.clear, list.reverse, lambda o: o.insert(0, 1), lambda o: o.pop(),
    lambda o: o.__setitem__(slice(None), o[::-1]+o)])
def test_list_that_changes_meanwhile(change):
    model = live(Aliases('list'))
    norm,folder = model.bn,BN_Folder()
    folder.fold(model, x, inplace=True)
    assert isinstance(model.get[1], nn.Identity)
    change(model.get)
    folder.unfold()
    assert model.bn is norm

# what can't be looked at, and what has nothing to do with it
class Odd:
    def __getattr__(self, k): raise RuntimeError('not now')
class OddSlots:
    __slots__ = 'a',
    def __getattr__(self, k): raise RuntimeError('not now')
bn = nn.BatchNorm2d(4) # of the name that a forward uses as an attribute

def freed():
    t = torch.randn(10)
    t.untyped_storage().resize_(0)
    return t

@pytest.mark.parametrize('thing', [
    lambda m: weakref.proxy(m), lambda m: weakref.proxy(Net()), lambda m: Odd(), lambda m: OddSlots(),
    lambda m: freed(), lambda m: torch.full((1,), np.nan).expand(5),
    lambda m: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), lambda m: torch.eye(2).to_sparse()])
@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
def test_things_in_a_model(thing):
    "that are no part of it don't matter"
    model = live(Net())
    model.things = [thing(model)]
    # PyTorch takes a proxy for a child
    if not issubclass(type(model.things[0]), weakref.ProxyTypes): model.thing = model.things[0]
    for inplace in False,True:
        folder = BN_Folder()
        try: folder.fold(model, x, inplace=inplace)
        except FoldError as e: assert "can't be copied" in str(e) and not inplace
        else: assert len(folder.report.folded)==1

class Missing: "Nothing was given"

@pytest.mark.parametrize('missing', [object(), Missing()])
def test_input_that_is_compared_by_identity(missing):
    class Optional(Net):
        def forward(self, x, m): return super().forward(x) if m is missing else 1/0
    folder = BN_Folder()
    folder.fold(live(Optional()), x, missing)
    assert 'an input other than a tensor' in folder.report.kept[0].reason # any other object may decide otherwise

def test_load_that_fails():
    class Refuses(Net):
        def get_extra_state(self): return 1
        def set_extra_state(self, state): raise RuntimeError('not this one')
    model = live(Refuses())
    state = BN_Folder().fold(model, x).state_dict()
    with pytest.raises(RuntimeError, match='not this one'): BN_Folder().load(model, state)
    assert isinstance(model.bn, nn.BatchNorm2d)

# inputs
class Batch:
    def __init__(self, x): self.x,self.log = x,[]

@pytest.mark.parametrize('make', [Batch, lambda x: collections.UserDict(x=x), lambda x: types.SimpleNamespace(x=x)])
def test_input_of_any_kind(make):
    "is left as it was, whatever the forward puts in it"
    class OnBatch(nn.Module):
        def __init__(self): super().__init__(); self.conv,self.bn = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4)
        def forward(self, b):
            box = b.data if isinstance(b, collections.UserDict) else vars(b)
            box['x'].mul_(2)
            box['x'] = self.bn(self.conv(box['x']))
            return box['x'].relu()
    model,b = live(OnBatch()),make(x.clone())
    folder = BN_Folder()
    folder.plan(model, b)
    folded = folder.fold(model, b)
    now = b['x'] if isinstance(b, collections.UserDict) else b.x
    assert torch.equal(now, x) # what an object has isn't heard
    assert 'an input other than a tensor' in folder.report.kept[0].reason
    with torch.no_grad(): torch.testing.assert_close(folded(make(x.clone())), model(make(x.clone())))

@pytest.mark.parametrize('child_first', [False, True])
def test_parent_and_child_in_one_model(child_first):
    "What the forward of either uses is put back, though the class of one is also part of the other's"
    class Parent(Net):
        def forward(self, x):
            bank.append(len(bank))
            return super().forward(x)
    class Child(Parent):
        def forward(self, x): return Net.forward(self, x)
    models = [Parent(),Child()]
    if child_first: models.reverse()
    net = Net(lambda self, y: y + self.nets[0](x)*0 + self.nets[1](x)*0, nets=nn.ModuleList(models))
    held_before = len(bank)
    BN_Folder().plan(live(net), x)
    assert len(bank)==held_before

def test_frozen_by_train():
    "as detectors do; what somebody has thawed by hand stays so"
    class Frozen(Net):
        def train(self, mode=True):
            super().train(mode)
            self.conv.requires_grad_(False)
            return self
    model = live(Frozen()).train().requires_grad_(True)
    before = held(model)
    BN_Folder().plan(model, x)
    assert held(model)==before and all(p.requires_grad for p in model.parameters())

def test_arrays_that_cannot_be_written_to():
    model,rng = live(Net()).train(),torch.get_rng_state()
    model.table,model.parts = np.array([np.nan, 1.]),np.array([np.ones(2), np.ones(3)], dtype=object)
    model.rng = random.SystemRandom()
    model.table.flags.writeable = False
    rng = torch.get_rng_state()
    for _ in range(2): assert len(BN_Folder().plan(model, x).folded)==1
    assert torch.equal(torch.get_rng_state(), rng)

# interrupts
def interrupted_in(name, n, f):
    "Run `f`, and raise a KeyboardInterrupt at the `n`th call of a function of that name in fastfold"
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_name==name and frame.f_code.co_filename.startswith(package):
            count += 1
            if count==n:
                sys.settrace(None)
                raise KeyboardInterrupt
    sys.settrace(trace)
    try: f()
    except KeyboardInterrupt: return True
    finally: sys.settrace(None)
    return False

@pytest.mark.parametrize('name', ['restore', '__torch_dispatch__', 'put_back'])
def test_interrupted_while_putting_back(name):
    "what was begun is done first; nothing of it is left for later"
    for n in range(1, 16): # each kind of holder has its `restore`
        model = live(Net()).train()
        before,rng = held(model),torch.get_rng_state()
        if not interrupted_in(name, n, lambda: BN_Folder().plan(model, x)): break
        assert held(model)==before and torch.equal(torch.get_rng_state(), rng)
        model.note,model.bn.eps = 1,.5
        BN_Folder().plan(model, x)
        assert model.note==1 and model.bn.eps==.5
    assert n>1

def lines_of(f, n):
    "Run `f`, and raise a KeyboardInterrupt at the `n`th line of fastfold's code; how many lines ran"
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(package): return None # not in PyTorch, where locks may be held
        if event=='line':
            count += 1
            if count==n: raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try: f()
    finally: sys.settrace(None)
    return count

@pytest.mark.parametrize('options', [dict(verify=False), dict(), dict(merge=True, layer_scale=True)],
    ids=['fast', 'verified', 'rewritten'])
def test_interrupted(options):
    "at 160 moments of a fold in place: the model is whole, or `unfold` makes it whole; and it can be folded afterwards"
    call,give = nn.Module.__call__,nn.Module.__setattr__
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.n = nn.Conv2d(4, 4, 3, padding=1),nn.Conv2d(4, 4, 1),nn.BatchNorm2d(4)
        def forward(self, x): return self.a(x) + self.b(x) + self.n(x)
    def make():
        layers = nn.Conv2d(3, 4, 3, bias=False),nn.BatchNorm2d(4),nn.ReLU(),Sum(),nn.Dropout()
        return live(nn.Sequential(*layers)).train()
    def fold(folder, model): return lambda: folder.fold(model, x, inplace=True)
    fold(BN_Folder(**options), make())() # what is done once only
    total = lines_of(fold(BN_Folder(**options), make()), -1)
    moments = random.Random(0).sample(range(1, total), 160)
    for n in [*moments, *range(total-40, total)]:
        model,folder = make(),BN_Folder(**options)
        before,rng = held(model),torch.get_rng_state()
        try: lines_of(fold(folder, model), n)
        except KeyboardInterrupt: pass
        else: continue
        folder.unfold()
        assert held(model)==before, n
        assert torch.equal(torch.get_rng_state(), rng), n
        assert not _get_current_dispatch_mode_stack() and not _get_current_function_mode_stack(), n
        assert not model[1].training or model.training
        folder = BN_Folder(**options)
        folder.fold(model, x, inplace=True)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model[:2])
    assert nn.Module.__call__ is call and nn.Module.__setattr__ is give

def test_interrupted_by_the_model():
    "in its own forward, in each of the passes"
    class Stops(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.left,self.conv,self.bn = [at],nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4)
        def forward(self, x):
            counts[0] += 1
            if counts[0]==self.left[0]: raise KeyboardInterrupt
            return self.bn(self.conv(x))
    for at in range(1, 5):
        counts = [0]
        model,folder = live(Stops(at)).train(),BN_Folder(tol=0.)
        before = held(model)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: folder.fold(model, x, inplace=True)
            except KeyboardInterrupt: assert held(model)==before
        folder.unfold()
        assert held(model)==before

# threads
def in_threads(*fs):
    "Run all of `fs` at once, and raise what any of them raised"
    errors = []
    def safely(f):
        try: f()
        except BaseException as e: errors.append(e)
    ts = [threading.Thread(target=safely, args=(f,)) for f in fs]
    for t in ts: t.start()
    for t in ts: t.join()
    if errors: raise errors[0]

def test_two_threads():
    "Folds, of different models and of the same, are as if each were alone"
    call,give = nn.Module.__call__,nn.Module.__setattr__
    def block(): return nn.Conv2d(3, 3, 3, padding=1),nn.BatchNorm2d(3),nn.Dropout()
    def net(i): return live(nn.Sequential(*itertools.chain(*[block() for _ in range(12)])), i).train()
    for _ in range(12):
        models = [net(0), net(1)]
        models.append(models[0])
        befores,reports = [held(m) for m in models],{}
        def fold(j):
            folder = BN_Folder()
            res = folder.fold(models[j], x)
            reports[j] = len(folder.report.folded),[m.training for m in res.modules()]
        in_threads(*[functools.partial(fold, j) for j in range(3)])
        assert all(n==12 and all(modes) for n,modes in reports.values()) and [held(m) for m in models]==befores
    assert nn.Module.__call__ is call and nn.Module.__setattr__ is give

def test_other_threads_forward():
    "is not recorded, and not disturbed: neither by the record, nor by tracing, nor by the check"
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b,self.n = nn.Conv2d(3, 3, 3, padding=1),nn.Conv2d(3, 3, 1),nn.BatchNorm2d(3)
        def forward(self, x): return self.a(x) + self.b(x) + self.n(x)
    model,done = live(nn.Sequential(*[Sum() for _ in range(6)])),threading.Event()
    with torch.no_grad(): want = model(x)
    alone = BN_Folder(merge=True)
    alone.fold(model, x)
    def serve():
        while not done.is_set():
            with torch.no_grad(), torch.autocast('cpu', enabled=False): assert torch.equal(model(x), want)
    def fold():
        try:
            for _ in range(3):
                folder = BN_Folder(merge=True)
                folder.fold(model, x)
                assert str(folder.report)==str(alone.report) and len(folder.report.merged)==6
        finally: done.set()
    in_threads(serve, fold)

def test_record_of_one_thread():
    "modules that another thread runs meanwhile aren't in the record"
    other,model = live(Net()),live(Net())
    def both(self, y):
        t = threading.Thread(target=lambda: other(x))
        t.start()
        t.join()
        return y
    model.also = both
    rec = record_pass(model, (x,), is_leaf=lambda m: isinstance(m, (nn.Conv2d,nn.BatchNorm2d)))
    assert [o.name for o in rec.record.ops]==['conv', 'bn', 'relu'] and other not in rec.record.called

# what was done while folded
def folded_net(**kw):
    model = live(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    for k,v in kw.items(): setattr(model[0].weight, k, v)
    folder = BN_Folder()
    before = held(model)
    folder.fold(model, x, inplace=True)
    return model,folder,before

def trained(m): torch.optim.SGD([p for p in m.parameters()], lr=.1).step(m(x).sum().backward())
def by_hand(m): # as in courses
    m(x).sum().backward()
    for p in m.parameters(): p.data -= .1*p.grad
overwritings = dict(optimizer=trained, by_hand=by_hand,
    loaded=lambda m: m.load_state_dict({k:v*1.01 for k,v in m.state_dict().items()}),
    one_number=lambda m: m[0].bias.data.mul_(1.001),
    averaged=lambda m: [p.detach().lerp_(torch.ones_like(p), .1) for p in m.parameters()])

@pytest.mark.parametrize('name', overwritings)
def test_overwritten(name):
    model,folder,_ = folded_net()
    overwritings[name](model)
    again = pickle.loads(pickle.dumps(folder))
    for f in folder,again,:
        with pytest.warns(UserWarning, match="the weights of 0 have changed since .*lost"): f.unfold()
        assert isinstance(f.model[1], nn.BatchNorm2d) and f.model[0].bias is None

@pytest.mark.parametrize('harmless', [
    lambda m: m.half().double(), lambda m: m.train().eval(), lambda m: m(x), lambda m: m[3].weight.data.mul_(2),
    lambda m: m.to(memory_format=torch.channels_last), deepcopy,
    lambda m: m.load_state_dict(m.state_dict(), assign=False) if False else None])
def test_not_overwritten(harmless):
    model,folder,_ = folded_net()
    if harmless(model) is not None: pass
    with warnings.catch_warnings():
        warnings.simplefilter('ignore' if 'half' in str(harmless.__code__.co_names) else 'error')
        folder.unfold()

def test_freezing_is_carried_over():
    model,folder,_ = folded_net()
    model.requires_grad_(False)
    folder.unfold()
    assert not any(p.requires_grad for p in model.parameters())
    folder.fold(model, x, inplace=True)
    model.requires_grad_(True)
    folder.unfold()
    assert all(p.requires_grad for p in model.parameters())
    model,folder,_ = folded_net(requires_grad=False) # a frozen body with norms that are trained
    model[3].requires_grad_(False)
    folder.unfold()
    assert [p.requires_grad for p in model.parameters()]==[False, True, True, False, False]

def test_replaced_while_folded():
    "What the user has put in stays, all else returns, and it is said"
    model,folder,_ = folded_net()
    norm,new = folder.changes[-1].old,nn.Conv2d(3, 4, 3).double()
    model[0] = new
    with pytest.warns(UserWarning, match='0 had been replaced .*unfold first, then replace'): folder.unfold()
    assert model[0] is new and model[1] is norm and not folder.changes

# files
def all_fold(m, **kw):
    folder = BN_Folder(**kw)
    folder.fold(m, x, inplace=True)
    return folder

@pytest.mark.parametrize('options', [{}, dict(merge=True), dict(layer_scale=True, merge=True)])
def test_pickled(options):
    "A folder before, while and after; what comes back unfolds"
    model = live(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Summed()))
    with torch.no_grad(): want = model(x)
    pickle.dumps(BN_Folder(**options))
    folder = all_fold(model, **options)
    for copy in pickle.loads(pickle.dumps(folder)),deepcopy(folder):
        with torch.no_grad(): torch.testing.assert_close(copy.model(x), want)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            copy.unfold()
        assert isinstance(copy.model[1], nn.BatchNorm2d) and isinstance(copy.model[3], Summed)
        with torch.no_grad(): assert torch.equal(copy.model(x), want)
    folder.unfold()
    pickle.loads(pickle.dumps(folder)).unfold()

class Summed(nn.Module):
    "Its merged weights have names and shapes that it has itself"
    def __init__(self): super().__init__(); self.c,self.n = nn.Conv2d(4, 4, 3, padding=1),nn.BatchNorm2d(4)
    def forward(self, x): return self.c(x) + self.n(x) + x

def test_load_of_a_merged_state():
    "into a model that isn't merged, where it must not fit by chance"
    model = live(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Summed()))
    folder = BN_Folder(merge=True)
    merged = folder.fold(model, x)
    assert len(folder.report.merged)==1
    for options in {}, dict(merge=True):
        fresh = live(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Summed()), 1)
        before = held(fresh)
        with pytest.raises(FoldError, match='save and load the whole model'):
            BN_Folder(**options).load(fresh, dict(merged.state_dict()))
        assert held(fresh)==before

# models that install hooks when they are run for the first time
def transformer(name):
    needs = 'transformers has models that install hooks at their first call'
    transformers = pytest.importorskip('transformers', reason=needs)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    vit = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, patch_size=8,
        num_channels=3, image_size=32)
    if name=='segformer': model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16))
    elif name=='dpt': model = transformers.DPTForDepthEstimation(transformers.DPTConfig(
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 8, 8, 8], fusion_hidden_size=8,
        use_batch_norm_in_fusion_residual=True, **vit))
    else: model = transformers.BeitForSemanticSegmentation(transformers.BeitConfig(
        out_indices=[1, 2, 3, 4], auxiliary_channels=8, use_auxiliary_head=True, **vit))
    return model,dict(pixel_values=x.repeat(1, 1, 4, 4))

@pytest.mark.parametrize('hidden', [False, True])
@pytest.mark.parametrize('name', ['segformer', 'dpt', 'beit'])
@pytest.mark.filterwarnings('ignore')
def test_transformers(name, hidden):
    (model,kw),(twin,_) = transformer(name),transformer(name)
    model,twin = live(model),live(twin)
    if hidden: kw = kw | dict(output_hidden_states=True)
    from fastfold.core.holders import tensors_in
    with torch.no_grad(): want = tensors_in(twin(**kw))
    before,folder = held(model),BN_Folder()
    folder.plan(model, kw=kw)
    assert held(model)==before
    folded = folder.fold(model, kw=kw)
    assert held(model)==before and folder.report.folded
    with torch.no_grad():
        for m,tol in (model, 0.), (folded, 1e-9):
            for _ in range(2):
                got = tensors_in(m(**kw))
                assert len(got)==len(want) and all((a-b).abs().max()<=tol*b.abs().max() for a,b in zip(got, want))
