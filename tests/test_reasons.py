"""Each reason where it arises: what is said, and what is said to help. Where something is said to help, it is done, and
helps; where the same thing can be written in several ways, the same is said"""
from copy import deepcopy
import pytest, torch
import torch.nn.functional as F
from fastai.torch_core import TensorImage
from torch import nn
from torch.nn.utils import prune
from fastfold.core.ops import OpRule
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live

class Net(nn.Module):
    "A convolution, a norm and other `parts`, used as the function `forward` says"
    def __init__(self, forward, **parts):
        super().__init__()
        self.conv,self.bn,self.function = nn.Conv2d(3, 4, 1),nn.BatchNorm2d(4),forward
        for k,m in parts.items(): setattr(self, k, m)
    def forward(self, *xs, **kwargs): return self.function(self, *xs, **kwargs)

images = torch.randn(4, 3, 8, 8, dtype=torch.float64)

def why(model, *xb, of='bn', **options):
    "The reason why the norm `of` of `model` is kept"
    if not isinstance(model, torch.fx.GraphModule): model = live(model)
    report = BN_Folder(**options).plan(model, *(xb or (images,)))
    reasons = {o.name:o.why for o in report.kept}
    assert of in reasons, str(report)
    return reasons[of]

def tells(o, *words, todo=''):
    "See that a reason has all of `words`, and that what is said to help begins with `todo`"
    for w in words: assert w in str(o), o
    assert o.todo.startswith(todo), o.todo
    assert o.can_help != o.todo.startswith('nothing')

def same(model, *options, x=images):
    "Fold `model`, and see that it computes the same; returns the report"
    folder = BN_Folder(*options, verify=False)
    with torch.no_grad(): want,got = model(x),folder.fold(model, x)(x)
    assert difference([want], [got])<1e-9
    return folder.report

# one thing, one name

activations = dict(
    relu=(nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, torch.Tensor.relu, torch.relu_),
    relu6=(nn.ReLU6(), F.relu6, lambda x: F.hardtanh(x, 0., 6.)), leaky_relu=(nn.LeakyReLU(), F.leaky_relu),
    elu=(nn.ELU(), F.elu), gelu=(nn.GELU(), F.gelu), silu=(nn.SiLU(), F.silu, nn.SiLU(inplace=True)),
    mish=(nn.Mish(), F.mish), hardswish=(nn.Hardswish(), F.hardswish), hardsigmoid=(nn.Hardsigmoid(), F.hardsigmoid),
    sigmoid=(nn.Sigmoid(), torch.sigmoid, torch.Tensor.sigmoid), tanh=(nn.Tanh(), torch.tanh), prelu=(nn.PReLU(),),
    softplus=(nn.Softplus(), F.softplus), layer_norm=(nn.LayerNorm(8), lambda x: F.layer_norm(x, (8,))))

@pytest.mark.parametrize('name', activations)
def test_one_name(name):
    "However an activation runs, and whatever kind of tensor it runs on, or as the graph of a program"
    for act in activations[name]:
        model = live(Net(lambda s,x: s.bn(s.act(s.conv(x))), act=act))
        for x in images,images.as_subclass(TensorImage):
            where = " in 'act'" if isinstance(act, nn.Module) else ''
            o = why(model, x)
            tells(o, f'its input is made by {name}{where}, and', todo=f'nothing: {name}')
        program = torch.export.export(live(nn.Sequential(nn.Conv2d(3, 4, 1), Call(act), nn.BatchNorm2d(4))), (images,))
        is_kept_whole = name not in ('mish', 'prelu', 'softplus') # a program may have the parts of these
        if is_kept_whole: tells(why(program.module(), of='2'), f'its input is made by {name}')

class Call(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)

# what comes before a norm

def test_beginning():
    "A norm at the beginning, right there or after something that isn't a layer; and after a constant"
    first = lambda s,x: s.bn3(x).relu()
    def of(f): return why(Net(f, bn3=nn.BatchNorm2d(3), p=nn.Parameter(torch.randn(3, 1, 1))), of='bn3')
    tells(of(first), 'its input is an input of the model', todo='nothing')
    for f in (lambda s,x: s.bn3(x+s.p).relu(), lambda s,x: s.bn3(x*s.p).relu(), lambda s,x: s.bn3(x/255).relu(),
            lambda s,x: s.bn3(x.flip(2)).relu()):
        tells(of(f), 'no layer comes before it, only ', todo='nothing')
        assert 'input of the model,' not in str(of(f))
    tells(of(lambda s,x: (s.bn3(s.p.expand(1, 3, 8, 8)) + x).relu()), 'its input, or a part of it, is a constant')
    tells(of(lambda s,x: s.bn3(x.new_ones(4, 3, 8, 8) + x).relu()), 'its input')
    tells(of(lambda s,x: s.bn3(torch.cat([torch.rand(4, 3, 8, 8).double()]) + x).relu()), 'its input')

def test_sum_with_tensor():
    "that is no parameter, and that no layer makes"
    model = Net(lambda s,x: s.bn(s.conv(x) + s.held[0]).relu())
    model.held = (torch.randn(1, 4, 8, 8).double(),)
    tells(why(model), 'its input, or a part of it, is a constant', todo='nothing')

def test_made():
    tells(why(Net(lambda s,x: s.bn(s.conv(x) + torch.rand(1, 4, 8, 8).double()).relu())), 'is made by rand')

# what helps

def test_rule_helps():
    "An operation that nothing is known of can have a rule"
    def turned(s, x): return s.bn(torch.rot90(s.conv(x), 1, (2, 3))).relu()
    o = why(Net(turned))
    tells(o, 'its input is made by rot90', todo='give rot90 a rule in `handlers`')
    rot90 = {torch.rot90: OpRule('moves')}
    model = live(Net(turned))
    assert len(BN_Folder(handlers=rot90).plan(model, images).folded)==1
    ahead = Net(lambda s,x: torch.rot90(s.bn(x.relu()), 1, (2, 3)), bn=nn.BatchNorm2d(3))
    tells(why(ahead), 'its output goes into rot90', todo='give rot90 a rule')
    def unknown(s, x): return s.bn(s.conv(x).cumsum(2)).relu()
    tells(why(Net(unknown)), todo='give cumsum a rule')

def test_used_otherwise():
    "An operation that has a rule, used so that nothing can pass"
    gate = Net(lambda s,x: s.bn(s.conv(x)*s.conv(x).mean((2, 3), keepdim=True)).relu())
    tells(why(gate), 'its input is made by mul', todo='nothing: no norm can be moved past mul as it is used there')

def test_in_place_helps():
    def adds(s, x): # to a view of what the convolution returned
        y = s.conv(x)
        y.mT.add_(3)
        return s.bn(y).relu()
    tells(why(Net(adds)), 'which works in place', todo='use an operation that is not in place')
    for plain in (lambda s,x: s.bn((s.conv(x).mT + 3).mT).relu()), (lambda s,x: s.bn(s.conv(x).add_(3)).relu()):
        assert not BN_Folder().plan(live(Net(plain)), images).kept

def test_norm_that_stays():
    model = live(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()))
    hook = model[1].register_forward_hook(lambda m,i,o: None)
    tells(why(model, of='2'), "its input is made by '1', a norm that stays", todo="look at why '1' stays")
    tells(why(model, of='1'), "'1' has a hook", todo='remove the hook')
    hook.remove()
    assert len(same(model).folded)==2

def test_output():
    "What an output is can't be helped, and what a hook sees can"
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
    tells(why(model, of='1'), "its output can't change: the model returns it",
        todo="nothing: relu in '0' isn't linear, and an output must stay as it is")
    class Keeps(nn.Sequential):
        def forward(self, x):
            self.kept = self[1](x.relu())
            return self[2](self.kept)
    o = why(Keeps(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), of='1')
    tells(o, 'something keeps it after the pass', todo='remove the hook, or return the value')

class Parts(nn.Module):
    "Goes through a batch in parts"
    def __init__(self, way):
        super().__init__()
        self.way,self.conv,self.bn = way,nn.Conv2d(3, 4, 1),nn.BatchNorm2d(4)
class Split(Parts):
    def forward(self, x): return self.bn(torch.cat([self.conv(o) for o in x.split(32)])).relu()
class Counts(Parts):
    def forward(self, x): return self.bn(torch.cat([self.conv(x[i:i+32]) for i in range(0, len(x), 32)])).relu()

def test_parts_of_a_batch():
    "A loop over numbers is not followed, `split` is, and a function out of sight with a smaller example"
    tells(why(Counts('')), 'turns a size of its input into an ordinary number', todo='use sizes as they are')
    assert not BN_Folder().plan(live(Split('')), images).kept
    def parted(s, x): return s.bn(torch.cat([s.conv(o) for o in x.split(32)])).relu()
    tells(why(Net(parted), images.repeat(20, 1, 1, 1)), todo='use sizes')
    assert 'a smaller example batch' in why(Net(parted), images.repeat(20, 1, 1, 1)).todo
    assert not BN_Folder().plan(live(Net(parted)), images).kept

class Asks(Parts):
    def forward(self, x, name=None):
        if self.way=='value': x = x/float(x.max())
        if self.way=='input' and hash(name): x = x + 1
        return self.bn(self.conv(x)).relu()

def test_lost():
    def of(way, x=images, kw={}):
        return BN_Folder().plan(live(Asks(way)), x, kw=kw).kept[0].why
    tells(of('value'), 'takes a number out of its input', todo='leave it in a tensor')
    class Typed(Parts):
        def forward(self, x):
            if x.dtype==torch.uint8: x = x.float()/255
            return self.bn(self.conv(x)).relu()
    bytes_ = (images*255).abs().to(torch.uint8)
    typed = live(Typed('')).float()
    o = BN_Folder().plan(typed, bytes_).kept[0].why
    tells(o, 'may depend on the dtype of its input', todo='convert the input')
    assert not BN_Folder().plan(typed, bytes_.float()/255).kept
    tells(of('input', kw=dict(name=object())), 'an input other than a tensor', todo='set it when the model is made')
    class Many(Parts):
        def forward(self, *xs): return self.bn(self.conv(sum(xs) if len(xs)>1 else xs[0])).relu()
    o = BN_Folder().plan(live(Many('')), images).kept[0].why
    tells(o, 'how many inputs it is given', todo='give each input a name of its own')

# pruning, and weights that are rescaled

def pair(): return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

@pytest.mark.parametrize('at,what', [(0, 'weight'), (0, 'bias'), (1, 'weight')])
def test_pruned(at, what):
    "`prune.remove` is said to help, and helps"
    model = live(pair())
    prune.l1_unstructured(model[at], what, .5)
    model(images)
    tells(why(model, of='1'), f"'{at}' is pruned, and computes its {what} anew each time",
        todo=f"make the pruning permanent first: prune.remove(layer, '{what}')")
    prune.remove(model[at], what)
    assert len(same(model).folded)==1

def test_pruned_everywhere():
    model = live(nn.Sequential(*pair(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    layers = [(m, 'weight') for m in model if isinstance(m, nn.Conv2d)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=.5)
    assert [str(o.why)[:13] for o in BN_Folder().plan(model, images).kept]==["'0' is pruned", "'3' is pruned"]
    for m,what in layers: prune.remove(m, what)
    assert len(same(model).folded)==2

def test_max_norm():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.), nn.BatchNorm1d(4), nn.ReLU())
    words = torch.arange(5)
    tells(why(model, words, of='1'), "'0' rescales its weight whenever it runs", todo='set its `max_norm` to None')
    live(model)(words)
    model[0].max_norm = None
    assert len(same(model, x=words).folded)==1

def test_recurrent_without_biases():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn,self.rnn = nn.BatchNorm1d(4),nn.LSTM(4, 3, bias=False, batch_first=True)
        def forward(self, x): return self.rnn(self.bn(x.mT).mT)[0]
    tells(why(First(), torch.randn(2, 5, 4).double()), "'rnn' has no bias", todo='give it one of zeros')

# bad numbers

def spoiled(kind, value, at=1):
    more = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    model = live(nn.Sequential(*pair(), *more))
    getattr(model[at], kind).data[1] = value
    return model

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('kind,value', [('running_mean', float('nan')), ('running_var', float('inf')),
    ('running_var', -1.), ('running_var', float('nan')), ('weight', float('inf')), ('weight', float('-inf')),
    ('bias', float('nan'))])
def test_one_bad_norm(kind, value, verify, inplace):
    "It stays as it was, with its numbers; the others are folded, and rightly"
    model = spoiled(kind, value)
    sound,before = deepcopy(model),deepcopy(model.state_dict())
    folder = BN_Folder(verify=verify)
    folded = folder.fold(model, images, inplace=inplace)
    assert [o.name for o in folder.report.folded]==['4', '7'] and [o.name for o in folder.report.kept]==['1']
    tells(folder.report.kept[0].why, 'NaN or infinite, or a variance is negative', todo='train it again')
    bad = getattr(folded[1], kind).detach()[1]
    assert bad==value or bad.isnan() and value!=value
    for m in sound,folded: getattr(m[1], kind).data[1] = .5
    assert difference([sound(images).detach()], [folded(images).detach()])<1e-9
    if not inplace: return
    getattr(model[1], kind).data[1] = value
    folder.unfold()
    after = model.state_dict()
    assert all(torch.equal(v.nan_to_num(), after[k].nan_to_num()) for k,v in before.items())

def test_a_wrong_fold_is_found_beside_a_bad_norm():
    "All outputs are NaN, which must not hide it"
    from fastfold.core.rules import NormRule
    from fastfold.core.affine import norm_affine
    class Odd(nn.BatchNorm2d): pass
    def wrong(norm, name):
        a = norm_affine(norm, name)
        return a._replace(scale=a.scale*2)
    model = spoiled('running_mean', float('nan'))
    model[4] = live(nn.Sequential(Odd(4)))[0]
    folder = BN_Folder(handlers={Odd: NormRule(wrong)})
    with pytest.warns(UserWarning, match="'4' is kept: folding it changed the output"): folder.fold(model, images)
    assert [o.name for o in folder.report.folded]==['7']

@pytest.mark.parametrize('verify', [False, True])
@pytest.mark.parametrize('has_norm', [False, True])
def test_merging_beside_a_bad_norm(has_norm, verify):
    "Branches are merged and compared, whatever the numbers of a norm elsewhere; and the report says how"
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Conv2d(3, 4, 3, padding=1),nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4) if has_norm else nn.Identity()
        def forward(self, x): return self.bn(self.a(x)) + self.b(x)
    model = live(nn.Sequential(Branches(), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)))
    model[4].running_var.fill_(float('nan'))
    folder = BN_Folder(verify=verify, merge=True)
    folded = folder.fold(model, images)
    assert len(folder.report.merged)==1 and len(folder.report.folded)==has_norm
    assert ('as if the numbers of 4 were sound, on' in str(folder.report))==verify
    assert folded[4].running_var.isnan().all() and model[4].running_var.isnan().all()
    for m in model,folded: m[4].running_var.fill_(.5)
    assert difference([model(images).detach()], [folded(images).detach()])<1e-9

def test_all_bad():
    model = live(pair())
    model[1].running_mean.fill_(float('nan'))
    folder = BN_Folder()
    folder.fold(model, images)
    assert [o.why.key for o in folder.report.rows]==['not_finite']

def test_bad_function():
    "A norm that a forward computes with buffers of its own"
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('mean', torch.randn(4))
            self.register_buffer('var', torch.rand(4))
        def forward(self, x): return F.batch_norm(x, self.mean, self.var)
    model = live(nn.Sequential(nn.Conv2d(3, 4, 1), Own(), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))
    model[1].mean[0] = float('nan')
    folder = BN_Folder()
    folder.fold(model, images)
    assert [o.name for o in folder.report.folded]==['4'] and folder.report.kept[0].why.key=='not_finite'

def test_bad_layer():
    "is told from a weight that a fold would make too large"
    model = live(pair())
    model[0].weight.data[0] = float('nan')
    folder = BN_Folder(verify=False)
    folder.fold(model, images)
    tells(folder.report.kept[0].why, "'0' has weights that are NaN or infinite", todo='train it again')
    for m in model,spoiled('weight', float('nan'), at=6):
        m[0].weight.data.fill_(float('nan'))
        with pytest.raises(FoldError, match='returns no finite number .*nothing to compare .*look for NaN'):
            BN_Folder().fold(live(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), m[0])), images)

# half precision

def test_half_statistics():
    model = spoiled('running_var', 1e5).half()
    assert model[1].running_var.isinf().any()
    o = {o.name:o.why for o in BN_Folder().plan(model, images.half()).kept}['1']
    tells(o, 'infinite, more than float16 can hold', todo='fold in float32, then convert')
    model[1].running_mean[0] = float('nan')
    tells({o.name:o.why for o in BN_Folder().plan(model, images.half()).kept}['1'], todo='train it again')

def test_half_weights():
    model = live(pair()).half()
    nn.init.constant_(model[1].running_var, 1e-6)
    model[1].eps = 1e-12
    nn.init.constant_(model[1].weight, 1e4)
    folder = BN_Folder(verify=False)
    folder.fold(model, images.half())
    tells(folder.report.kept[0].why, "'0' would have weights that float16 can't hold", todo='fold in float32')

# programs

def exported(model, training=False): return torch.export.export(live(model).train(training), (images,))

def test_program():
    program = exported(pair())
    with pytest.raises(FoldError, match="can't fold an ExportedProgram: fold before you export, or fold the module"):
        BN_Folder().fold(program, images)
    assert len(same(program.module()).folded)==1

def test_program_in_training():
    tells(why(exported(pair(), True).module(), of='1'), 'it was exported in training mode',
        todo="call the model's `eval()` before you export it")

def test_decomposed_program():
    tells(why(exported(pair()).run_decompositions().module(), of='1'),
        "the graph of the model calls it in a form that can't be taken out", todo='fold before you export')

# what can't be folded at all

def test_other_things():
    for o,kind in ('model', 'str'),({}, 'dict'): # no article that may be the wrong one
        with pytest.raises(FoldError, match=f"can't fold this .{kind}.: give an nn.Module"): BN_Folder().fold(o)

@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_prepared():
    import torch.ao.quantization as tq
    model = nn.Sequential(tq.QuantStub(), *pair(), tq.DeQuantStub()).train()
    model.qconfig = tq.get_default_qat_qconfig('fbgemm')
    with pytest.raises(FoldError, match='quantization-aware training .at .*FakeQuantize.*before `prepare_qat`'):
        BN_Folder().fold(tq.prepare_qat(deepcopy(model)), images.float())
    model.eval().qconfig = tq.get_default_qconfig('fbgemm')
    with pytest.raises(FoldError, match='prepared for quantization .at .*Observer.*before `prepare`, then calibrate'):
        BN_Folder().fold(tq.prepare(deepcopy(model)), images.float())
