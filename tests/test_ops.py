"""Every row of the table of operations: its example is folded both ways, at two sizes, and what the row says of memory
is so. A notebook can't teach this: it is about all rows at once"""
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastfold.core import crossing, rules
from fastfold.core.affine import Affine, LinearMap
from fastfold.core.ops import ATTENDS, MAY_COPY, MOVES, OPS, OpRule, PARTS, SOFTMAX
from fastfold.core.passes import record_pass
from fastfold.core.recorder import func_name
from fastfold.core.refusals import FoldError
from fastfold.core.request import Request
from fastfold.core.rules import LayerRule, NormRule
from fastfold.folder import BN_Folder
from random_nets import difference, live

sizes = (2,8,4,4), (3,8,6,2)
rows = {getattr(f, '__name__', '')+'/'+func_name(f):row for f,row in OPS.items() if row.example}
rows = {k.split('/')[1]:row for k,row in rows.items()}

class Runs(nn.Module):
    "A layer, the example, a norm; or a norm, the example, a layer"
    def __init__(self, first, example, last):
        super().__init__()
        self.first,self.example,self.last = first,example,last
    def forward(self, x): return self.last(self.example(self.first(x)))

def images(size): return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

def norm_for(y):
    "A norm along axis 1 of values like `y`"
    return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[y.ndim](y.shape[1])

def layer_for(y):
    "A layer that takes in axis 1 of values like `y`"
    if y.ndim==2: return nn.Linear(y.shape[1], 3)
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[y.ndim](y.shape[1], 3, 1)

def positive(model):
    "`model` with norms of positive scale, which maxima can be taken before or after"
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.weight.data.abs_()
    return model

def nets(row):
    y = row.example(images(sizes[0]))
    torch.manual_seed(0)
    back = Runs(nn.Conv2d(8, 8, 1), row.example, norm_for(y))
    ahead = Runs(nn.BatchNorm2d(8), row.example, layer_for(y))
    return dict(back=positive(live(back)), ahead=positive(live(ahead)))

def has_home(name, way):
    "Can the norm in the net be folded?"
    row = rows[name]
    # the values that attention averages are also asked how alike they are
    if row.does in (SOFTMAX, ATTENDS): return False
    if row.writes: return way=='back' # over what the norm returns, which the layer after it should get
    if way=='back': # copies of a channel have norms of their own, and only one term of a sum takes the shift
        return name not in ('sum', 'tile', 'repeat_interleave', 'concatenate', 'hstack', 'pixel_unshuffle')
    return name!='pixel_shuffle' # one channel after it is made of several

@pytest.mark.parametrize('way', ['back', 'ahead'])
@pytest.mark.parametrize('name', rows)
def test_row(name, way):
    folder,net = BN_Folder(verify=False),nets(rows[name])[way]
    folded = folder.fold(net, images(sizes[0]))
    for size in sizes: assert difference(net(images(size)), folded(images(size)))<1e-9
    assert bool(folder.report.folded)==has_home(name, way), folder.report

moves = [k for k,row in rows.items() if (row.does==MOVES or row.writes) and row.memory!=MAY_COPY]
@pytest.mark.parametrize('name', moves)
def test_memory(name):
    "What shares memory is said to, and what writes into its input"
    row,x = rows[name],images(sizes[0])
    model = Runs(nn.Identity(), lambda x: row.example(x.clone()), nn.Identity())
    ops = [o for o in record_pass(model, (x,)).record.ops if o.rule is row]
    assert ops, 'the example calls the operation'
    shares = all(o.outputs[0].storage==o.inputs[0].storage for o in ops)
    if row.writes: assert all(o.in_place for o in ops)
    else: assert shares==bool(row.memory) and not any(o.in_place for o in ops)

@pytest.mark.parametrize('name', [k for k,row in rows.items() if row.memory==MAY_COPY])
def test_may_copy(name):
    "A view where memory is in order, and a copy where it is not"
    x = images(sizes[0])
    def is_view(x): return rows[name].example(x).data_ptr()==x.data_ptr()
    assert is_view(x) and not is_view(x.transpose(1, 2))

@pytest.mark.parametrize('name', [k for k,row in rows.items() if row.memory==PARTS])
def test_parts(name):
    "What is one of several parts, or repeats an element, has other memory than it would have alone"
    x = images(sizes[0])
    y = rows[name].example(x)
    assert not y.is_contiguous() or y.untyped_storage().nbytes()>y.nbytes

asked = {func_name(f):(f, row) for f,row in OPS.items() if row.asks or row.gives_numbers or row.exposes}

@pytest.mark.parametrize('name', sorted(k for k,(_,row) in asked.items() if row.asks))
def test_asks(name):
    "The answer is the same for other values"
    f = asked[name][0]
    def ask(x):
        try: return f(x)
        except (TypeError, RuntimeError) as e: pytest.skip(f'{name} takes more than a tensor: {e}')
    x = images(sizes[0])
    if name in ('__hash__', 'grad_fn', 'grad', '_version'): return # of the tensor itself
    assert ask(x)==ask(x+1)

def test_a_row_that_lies():
    "Padding makes zeros, and is no move"
    model = Runs(nn.Conv2d(3, 4, 1), lambda x: F.pad(x, (1,1,1,1)), nn.BatchNorm2d(4))
    for rule in OpRule(MOVES),OpRule(cross=crossing.moves):
        ahead = nn.Sequential(nn.BatchNorm2d(3), Runs(nn.Identity(), lambda x: F.pad(x, (1,1)), nn.Conv2d(3,4,1)))
        for net in live(model),live(ahead):
            folder = BN_Folder(verify=False, handlers={F.pad: rule})
            x = torch.randn(2,3,5,5).double()
            assert difference(net(x), folder.fold(net, x)(x))<1e-9 and not folder.report.folded

def test_a_rule_from_outside():
    net = live(Runs(nn.Conv2d(3, 4, 1), lambda x: x.rot90(1, (2,3)), nn.BatchNorm2d(4)))
    x = torch.randn(2,3,5,4).double()
    assert not BN_Folder().plan(net, x).folded
    folder = BN_Folder(verify=False, handlers={torch.rot90: OpRule(MOVES)})
    assert difference(net(x), folder.fold(net, x)(x))<1e-9 and folder.report.folded

def test_a_rule_that_fails(monkeypatch, caplog):
    "Its error is raised here, and told in the report and the log elsewhere"
    def wrong(op, request): return request.no_such_thing
    net,x = live(Runs(nn.Conv2d(3, 4, 1), lambda x: x.rot90(1, (2,3)), nn.BatchNorm2d(4))),torch.randn(2,3,5,4).double()
    folder = BN_Folder(verify=False, handlers={torch.rot90: OpRule(cross=wrong)})
    with pytest.raises(AttributeError, match='no_such_thing'): folder.plan(net, x)
    monkeypatch.setattr(rules, 'strict', False)
    row, = folder.plan(net, x).kept
    assert "the rule for rot90" in row.reason and 'no_such_thing' in row.reason
    assert 'in wrong' in caplog.text and 'Traceback' in caplog.text

claims = [(torch.abs, torch.abs), (torch.relu, torch.relu), (torch.round, torch.round), (torch.floor, torch.floor),
    (torch.clamp, lambda y: y.clamp(min=0)), (torch.msort, torch.msort), (torch.flip, lambda y: y.flip(1)*1.),
    (torch.lerp, lambda y: torch.lerp(y, y.roll(1, 1), .5)), (torch.trunc, torch.trunc),
    (F.avg_pool2d, lambda y: F.avg_pool2d(y.transpose(1, 3), (1,3), 1, (0,1)).transpose(1, 3))]

@pytest.mark.parametrize('i', range(len(claims)))
@pytest.mark.parametrize('way', ['back', 'ahead'])
def test_claims(i, way):
    "What changes numbers, or moves them by what they are, is no move, whatever its rule says; on other inputs, too"
    f,call = claims[i]
    if way=='back': net = Runs(nn.Conv2d(3, 4, 1), call, nn.BatchNorm2d(4))
    else: net = Runs(nn.BatchNorm2d(3), call, nn.Conv2d(3, 4, 1))
    folder,xs = BN_Folder(verify=False, handlers={f: OpRule(MOVES)}),[images((2,3,5,4))*3, images((3,3,7,6))*9]
    folded = folder.fold(live(net), xs[0])
    for x in xs: assert difference(net(x), folded(x))<1e-9
    assert len(folder.report.folded)==(f is torch.flip)

def shift_only(op, request): return [Request(op.inputs[0], (1., 0.), 1)]
malformed = dict(bare=lambda op,request: request, true=lambda op,request: True, floats=shift_only,
    short=lambda op,request: [Request(op.inputs[0], Affine(request.affine.scale[1:], request.affine.shift[1:]), 1)])

@pytest.mark.parametrize('kind', malformed)
def test_malformed(kind, monkeypatch):
    "What a rule returns is looked at, and its norm stays"
    net,x = live(Runs(nn.Conv2d(3, 4, 1), lambda y: y.rot90(1, (2,3)), nn.BatchNorm2d(4))),images((2,3,5,4))
    folder = BN_Folder(verify=False, handlers={torch.rot90: OpRule(cross=malformed[kind])})
    with pytest.raises((TypeError, ValueError), match='it returned'): folder.plan(net, x)
    monkeypatch.setattr(rules, 'strict', False)
    assert torch.equal(folder.fold(net, x)(x), net(x)) and 'it returned' in folder.report.kept[0].reason

class Own(nn.Linear):
    def forward(self, x): return F.linear(x, self.weight) + self.bias

class OwnNorm(nn.BatchNorm1d):
    def forward(self, x): return super().forward(x)

def fails(*args): raise KeyError('wieght')

class Map(LinearMap):
    parameters = absorb_after = fails

broken = [{Own: LayerRule(axis=fails)}, {Own: LayerRule(map=fails)}, {Own: LayerRule(map=Map)},
    {Own: LayerRule(), OwnNorm: NormRule(fails)}]

@pytest.mark.parametrize('i', range(len(broken)))
def test_other_rules_that_fail(i, monkeypatch):
    "Rules for layers and norms are named as well, and the model is as it was"
    norm = OwnNorm(4) if OwnNorm in broken[i] else nn.BatchNorm1d(4)
    net,x,folder = live(nn.Sequential(Own(3, 4), norm)),images((5,3)),BN_Folder(handlers=broken[i])
    with pytest.raises(KeyError, match='wieght'): folder.fold(net, x)
    monkeypatch.setattr(rules, 'strict', False)
    for inplace in False,True: assert torch.equal(folder.fold(net, x, inplace=inplace)(x), net(x))
    assert "the rule for" in folder.report.kept[0].reason and 'wieght' in folder.report.kept[0].reason

def test_axis_as_a_number():
    net = live(nn.Sequential(Own(3, 4), nn.BatchNorm1d(4)))
    folder = BN_Folder(verify=False, handlers={Own: LayerRule(axis=-1)})
    folded = folder.fold(net, images((5,3)))
    assert difference(net(images((9,3))), folded(images((9,3))))<1e-9 and folder.report.folded

@pytest.mark.parametrize('handlers,says', [
    ({torch.rot90: LayerRule()}, 'give the class'), ({nn.ReLU: OpRule(MOVES)}, 'give the function'),
    ({'rot90': OpRule(MOVES)}, 'give the function'), ({nn.Linear: 3}, 'give a NormRule')])
def test_handlers_that_cannot_be(handlers, says):
    with pytest.raises(FoldError, match=says): BN_Folder(handlers=handlers)

def test_words():
    with pytest.raises(FoldError, match='give one of moves, adds'): OpRule('movse')
