"""Every row of the table of operations: its example is folded both ways, at two sizes, and what the row says of memory
is so. A notebook can't teach this: it is about all rows at once"""
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastfold.core import crossing, rules
from fastfold.core.ops import ATTENDS, MAY_COPY, MOVES, OPS, OpRule, PARTS, SOFTMAX
from fastfold.core.recorder import func_name, record_pass
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
    if row.writes or row.does in (SOFTMAX, ATTENDS): return False
    if way=='back': # copies of a channel have norms of their own
        return name not in ('tile', 'repeat_interleave', 'concatenate', 'hstack', 'pixel_unshuffle')
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

@pytest.mark.parametrize('name', [k for k,(_,row) in asked.items() if row.asks])
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
