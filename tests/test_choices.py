"""Models that choose, as detectors do: what a fold is compared by where rounding decides about the output, or where
there is none. No wrong fold may pass, before a choice, after it, or where nothing was chosen; and right ones must"""
import warnings
import pytest, torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import MultiScaleRoIAlign, nms
from fastfold.core import choices
from fastfold.core.choices import Departure, follow
from fastfold.core.record import Pass
from fastfold.core.refusals import FoldError
from fastfold.core.rules import NORMS, NormRule
from fastfold.folder import BN_Folder
from random_nets import difference, live

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

class Lied(nn.BatchNorm2d):
    "Folded with a scale that is a bit off"
class Lied1d(nn.BatchNorm1d): "Likewise"
def a_little(norm, name):
    right = NORMS[nn.BatchNorm2d].affine(norm, name)
    return right._replace(scale=right.scale*1.001)
lying = {Lied: NormRule(affine=a_little), Lied1d: NormRule(affine=a_little)}

class Finds(nn.Module):
    "Scores the places of an image, chooses some by their scores, and works on what is there"
    def __init__(self, choose, score=nn.BatchNorm2d, box=nn.BatchNorm2d, head=nn.BatchNorm1d):
        super().__init__()
        self.choose = choose
        self.score = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1), score(1))
        self.box = nn.Sequential(nn.Conv2d(2, 4, 3), box(4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(4, 6), head(6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x):
        scores = self.score(x[:,:1]).flatten()
        boxes = self.box(x[:,1:]).movedim(1, -1).reshape(-1, 4)
        at = self.choose(scores, boxes)
        return scores[at],boxes[at],self.head(boxes[at])

def overlapping(s, b): return nms(torch.cat([b[:,:2], b[:,:2]+1+b[:,2:]], 1), s, .3)[:5]
ways = dict(
    topk=lambda s,b: s.topk(5).indices,
    sort=lambda s,b: s.sort()[1][:5],
    argsort=lambda s,b: s.argsort(descending=True)[:5],
    argmax=lambda s,b: s.view(2, -1).argmax(1),
    max=lambda s,b: s.view(2, -1).max(1)[1],
    nonzero=lambda s,b: (s>=s.median()).nonzero()[:5,0],
    where=lambda s,b: torch.where(s<=s.median())[0][:5],
    mask=lambda s,b: torch.arange(len(s))[s>=s.median()][:5],
    nms=overlapping,
    floor=lambda s,b: (3*(s[:5]/s.mean()).floor().long() + torch.arange(5)) % len(s),
    long=lambda s,b: (3*(s[:5]/s.mean()).long() + torch.arange(5)) % len(s),
    item=lambda s,b: torch.tensor([3*int((s[0]/s.mean()).item()) % len(s)]))

def image(ties, dtype=torch.float64):
    "An image on which all scores are the same, but for rounding, or one on which they are not"
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 10, 12, generator=drawn, dtype=torch.float64)
    if ties: x[:,0] = 1 + torch.randint(0, 30, (10,12), generator=drawn)*torch.finfo(dtype).eps
    return x.to(dtype)

def fold(model, x, inplace=False, **options):
    "Fold `model`; returns the report, the folded model, and what is warned of"
    folder = BN_Folder(**options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        folded = folder.fold(model, x, inplace=inplace)
    return folder.report,folded,[str(o.message) for o in seen if 'fold' in str(o.message) or 'kept' in str(o.message)]

def outputs(model, x):
    with torch.no_grad(): return model(x)

@pytest.mark.parametrize('part', ['score', 'box', 'head'])
@pytest.mark.parametrize('way,ties', [*((o, False) for o in ('argmax', 'nms')),
    *((o, True) for o in ('topk', 'where', 'long', 'item'))])
def test_wrong(way, ties, part):
    "A wrong fold is found, and no other is taken for it: before a choice, in what is chosen from, and after a choice"
    liar = Lied1d if part=='head' else Lied
    model,x = live(Finds(ways[way], **{part: liar})),image(ties)
    report,folded,seen = fold(model, x, handlers=lying)
    assert [o.kind for o in report.kept]==[liar.__name__], report
    assert len(seen)==1 and 'report this' in seen[0]
    if not ties: assert difference(outputs(model, x), outputs(folded, x))<1e-9

@pytest.mark.parametrize('way,dtype', [*((o, torch.float32) for o in ways), ('topk', torch.float64),
    ('topk', torch.bfloat16)])
def test_right(way, dtype):
    "Where rounding decides what is chosen, all is folded, nobody is warned, and the report says what was compared"
    report,_,seen = fold(live(Finds(ways[way]), dtype), image(True, dtype))
    assert not (report.kept or seen), (report, seen)
    assert report.max_err<100*torch.finfo(dtype).eps

def test_plain_outputs_say_nothing():
    "It is no matter of chance that the test above passes"
    def is_other(way):
        model,x = live(Finds(ways[way]), torch.float32),image(True, torch.float32)
        report,folded,_ = fold(model, x)
        a,b = outputs(model, x),outputs(folded, x)
        differs = [o.shape for o in a]!=[o.shape for o in b] or difference(a, b)>1e-3
        assert 'compared what goes into' in str(report) or not differs
        return differs
    assert sum(map(is_other, ('topk', 'sort', 'max', 'mask', 'floor')))>2

@pytest.mark.parametrize('part', ['score', 'box', ''])
@pytest.mark.parametrize('inplace', [False, True])
def test_nothing_found(part, inplace):
    "Scores, and the boxes that none was picked of, are compared"
    model,x = live(Finds(lambda s,b: torch.where(s>1e3)[0], **({part: Lied} if part else {}))),image(False)
    assert not len(outputs(model, x)[0])
    report,folded,seen = fold(model, x, handlers=lying, inplace=inplace)
    assert [o.kind for o in report.kept]==['Lied']*bool(part) + ['BatchNorm1d'], report # the last gets nothing
    assert len(seen)==bool(part) and report.choices[:2]==['comparisons', 'indexing']

@pytest.mark.parametrize('way', ['nan', 'constant', 'none'])
def test_nothing_to_tell(way):
    "What is not compared with anything that the norms made is refused as before"
    def choose(s, b):
        if way=='nan': return torch.where(s*float('nan')>0)[0]
        if way=='constant': return torch.where(torch.full_like(s, 2.)<1)[0]
        return torch.zeros(0, dtype=torch.long)
    class Empty(Finds):
        def forward(self, x):
            scores = self.score(x[:,:1]).flatten()
            return scores.new_zeros(5)[self.choose(scores, None)]
    model = live(Empty(choose, score=Lied))
    with pytest.raises(FoldError, match='no finite number'): fold(model, image(False), handlers=lying)

@pytest.mark.parametrize('norm', [Lied, nn.BatchNorm2d])
def test_rounding_before_a_choice(norm):
    "Where every last digit matters for what is chosen by, float64 tells, and there the same choices are made as well"
    model = live(Finds(lambda s,b: (s.double()*1e8).sin().topk(5).indices, box=norm), torch.float32)
    report,_,seen = fold(model, image(False, torch.float32), handlers=lying)
    assert len(report.kept)==len(seen)==(norm is Lied) and report.exact_err<1e-6

class Labels(nn.Sequential):
    def forward(self, x): return super().forward(x).argmax(1)

@pytest.mark.parametrize('norm', [Lied, nn.BatchNorm2d])
def test_labels(norm):
    "Labels alone can hide that a fold is wrong"
    model,x = live(Labels(nn.Conv2d(3, 4, 1), norm(4))),torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, 3, 2, 4)
    report,_,seen = fold(model, x, handlers=lying)
    assert len(report.kept)==len(seen)==(norm is Lied) and report.choices==['argmax']*(norm is not Lied)

def test_not_a_number():
    "Outputs that are no numbers are refused, although there was a choice to compare"
    class Hides(nn.Sequential):
        def forward(self, x): return super().forward(x).sort(1)[0]*float('nan')
    model = live(Hides(nn.Conv2d(3, 4, 1), Lied(4)))
    report,_,seen = fold(model, image(False), handlers=lying)
    assert len(report.kept)==len(seen)==1

def test_plain(monkeypatch):
    "No model whose outputs tell has to choose"
    monkeypatch.setattr(choices, 'Choosing', None)
    report,_,_ = fold(live(Finds(ways['topk'])), image(False))
    assert not report.kept and not report.choices and 'choices' not in str(report)

def test_threshold_out_of_sight():
    "A wrong number that Python has computed is found in what goes into a comparison"
    class Above(nn.Module):
        def __init__(self, factor): super().__init__(); self.factor = factor
        def forward(self, x): return x[x>float(x.numpy().max())*self.factor]
    call = Pass('', (torch.arange(5.),), {})
    _,made = follow(Above(.5), call)
    _,other = follow(Above(.501), call, made)
    assert difference(made[0].given, other[0].given)>1e-4

class Runs(nn.Module):
    "Is a function of its inputs"
    def __init__(self, function): super().__init__(); self.function = function
    def forward(self, *args): return self.function(*args)

made_by = dict(
    in_place=lambda x: x.floor_(),
    compared_in_place=lambda x: x.gt_(.5),
    out=lambda x: torch.gt(x, .5, out=torch.zeros(3, dtype=torch.bool)),
    copied=lambda x: torch.zeros(3, dtype=torch.long).copy_(x),
    rounded=lambda x: x.round(),
    bytes=lambda x: (x*2).to(torch.uint8),
    isnan=lambda x: torch.isnan(x/(x-1)*(x-1)),
    equal=lambda x: torch.tensor(torch.equal(x, x.clamp(max=2))),
    bucketize=lambda x: torch.bucketize(x, x*0+.5))

@pytest.mark.parametrize('f', made_by.values(), ids=made_by)
def test_made_again(f):
    "A choice is made again wherever it is written to, and what had gone into it is kept"
    x,y = torch.tensor([.2,1,2.6]),torch.tensor([.7,1.4,0])
    result,made = follow(Runs(f), Pass('', (x,), {}))
    again,other = follow(Runs(f), Pass('', (y,), {}), made)
    assert torch.equal(result, again) and not torch.equal(f(y.clone()), again)
    assert any(torch.equal(t, x) for t in made[0].given) or len(made[0].given)==1

def test_departs():
    "Other choices, more of them, fewer, or of other tensors are another way, even if the model hides it"
    x,y = Pass('', (torch.rand(4),), {}),Pass('', (torch.rand(5),), {})
    def hides(x):
        try: return x.topk(2).indices
        except Exception: return x.argsort()
    _,made = follow(Runs(torch.argsort), x)
    def two(x): return x.argsort() + x.argmax()
    for f,call in ((torch.argmax, x), (torch.relu, x), (two, x), (torch.argsort, y), (hides, x)):
        with pytest.raises(Departure): follow(Runs(f), call, made)

def backbone(norm):
    first,second = nn.Conv2d(3, 8, 3, stride=4),nn.Conv2d(8, 32, 3)
    res = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, norm(32), nn.ReLU())
    res.out_channels = 32
    return res

def detector(kind, norm, thresh):
    "A small detector of torchvision"
    options,anchors = dict(min_size=32, max_size=32, num_classes=3),AnchorGenerator(((16,),), ((1.,),))
    if kind!='fasterrcnn':
        options |= dict(score_thresh=thresh, topk_candidates=9, anchor_generator=anchors)
        return (detection.RetinaNet if kind=='retinanet' else detection.FCOS)(backbone(norm), **options)
    head = FastRCNNConvFCHead((32, 3, 3), [8], [12], norm_layer=norm)
    return detection.FasterRCNN(backbone(norm), rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(['0'], 3, 2), rpn_post_nms_top_n_test=5, rpn_pre_nms_top_n_test=9,
        box_score_thresh=thresh, box_head=head, num_classes=None,
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(12, 3), min_size=32, max_size=32)

@pytest.mark.parametrize('kind,thresh,norm', [('retinanet', 0., Lied), ('retinanet', 0., nn.BatchNorm2d),
    ('fcos', .999, nn.BatchNorm2d), ('fasterrcnn', .999, Lied)])
def test_detector(kind, thresh, norm):
    "Those of torchvision, that find boxes of scores that are almost the same, or none"
    model,x = live(detector(kind, norm, thresh), torch.float32),[.5 + torch.rand(3, 32, 32)*1e-6]
    for m in model.modules():
        if isinstance(m, (nn.Conv2d,nn.Linear)): nn.init.kaiming_normal_(m.weight)
    report,_,seen = fold(model, x, handlers=lying)
    assert report.rows[0].into and bool(report.rows[1].why)==(norm is Lied)
    assert report.choices and len(seen)==(norm is Lied), (report, seen)
