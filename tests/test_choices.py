"""Models that choose, as detectors do: what a fold is compared by where rounding decides about the output, or where
there is none. No wrong fold may pass, before a choice, after it, or where nothing was chosen; and right ones must"""
import warnings
import numpy as np, pytest, torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import MultiScaleRoIAlign, nms
from fastfold.core import choices
from fastfold.core.choices import Choosing, Departure, follow
from fastfold.core.record import Pass
from fastfold.core.refusals import FoldError
from fastfold.core.rules import NORMS, NormRule
from fastfold.core.verify import Check
from fastfold.folder import BN_Folder
from random_nets import difference, live

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
    nonzero=lambda s,b: (s>=s.mean()).nonzero()[:5,0],
    where=lambda s,b: torch.where(s<=s.median())[0][:5],
    mask=lambda s,b: torch.arange(len(s))[s>=s.mean()][:5],
    nms=overlapping,
    floor=lambda s,b: (3*(s[:5]/s.mean()).floor().long() + torch.arange(5)) % len(s),
    long=lambda s,b: (3*(s[:5]/s.mean()).long() + torch.arange(5)) % len(s),
    item=lambda s,b: torch.tensor([3*int((s[0]/s.mean()).item()) % len(s)]))

def image(ties, dtype=torch.float64):
    "An image on which all scores are the same, but for rounding, or one on which they are not"
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 10, 12, generator=drawn, dtype=torch.float64)
    if ties: x[:,0] = 1 + torch.randint(0, 4, (10,12), generator=drawn)*torch.finfo(dtype).eps
    return x.to(dtype)

def fold(model, x, **options):
    "Fold `model`; returns the report, the folded model, and what is warned of"
    folder = BN_Folder(**options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        folded = folder.fold(model, x)
    return folder.report,folded,[str(o.message) for o in seen if 'fold' in str(o.message) or 'kept' in str(o.message)]

def kept(report): return [(o.name, o.why.key if hasattr(o.why, 'key') else '') for o in report.kept]
def outputs(model, x):
    with torch.no_grad(): return model(x)

@pytest.mark.parametrize('part', ['score', 'box', 'head'])
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('way', ways)
def test_wrong(way, ties, part):
    "A wrong fold is found, and no other is taken for it: before a choice, in what is chosen from, and after a choice"
    liar = Lied1d if part=='head' else Lied
    model,x = live(Finds(ways[way], **{part: liar})),image(ties)
    report,folded,seen = fold(model, x, handlers=lying)
    assert [o.kind for o in report.kept]==[liar.__name__], report
    assert len(seen)==1 and 'report this' in seen[0]
    if not ties: assert difference(outputs(model, x), outputs(folded, x))<1e-9

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('way', ways)
def test_right(way, dtype):
    "Where rounding decides what is chosen, all is folded, nobody is warned, and the report says what was compared"
    model,x = live(Finds(ways[way]), dtype),image(True, dtype)
    report,folded,seen = fold(model, x)
    assert not (report.kept or seen), (report, seen)
    assert report.max_err<100*torch.finfo(dtype).eps
    other = difference(outputs(model, x), outputs(folded, x))
    if other>1e-3: assert report.choices and 'what goes into' in str(report)

def test_choices_differ():
    "It is no matter of chance that the tests above say nothing of plain outputs"
    def differs(way):
        model,x = live(Finds(ways[way])),image(True)
        return difference(outputs(model, x), outputs(fold(model, x)[1], x))>1e-3
    assert sum(map(differs, ways))>=len(ways)/2
