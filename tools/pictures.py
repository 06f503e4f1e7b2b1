"""Draw the pictures of the README: one block before and after, from a record of what it runs, and its latency as
measured here"""
from pathlib import Path
from matplotlib import pyplot as plt
from torch import nn
from torchvision.models import resnet18
import torch
from fastcore.script import call_parse
from fastfold.lab.bench import benchmark, without_norms
from fastfold.core.record import Record
from fastfold.core.passes import record_pass
from fastfold.folder import BN_Folder
from fastfold.report.palette import colors
from fastfold.report.picture import card, write

images = Path(__file__).resolve().parent.parent/'images'

def steps(block:nn.Module, x:torch.Tensor) -> Record:
    "What `block` runs, with its layers and norms as one step each"
    def is_leaf(m): return m is not block and not list(m.children()) and not isinstance(m, nn.Identity)
    return record_pass(block, (x,), is_leaf=is_leaf).record

def draw_steps(ax, y:float, title:str, record:Record, taken:list[str]):
    """Boxes joined by arrows, and a line for the skip connection; norms in one colour, the layers that took them in
    another"""
    names = [o.name for o in record.ops]
    write(ax, 0, y-.95, title, size=11, weight='bold')
    for i,n in enumerate(names):
        color = 'kept' if n.startswith('bn') else 'folded' if n in taken else 'soft'
        ax.add_patch(plt.Rectangle((i+.3, y-.28), .8, .56, fc=colors['card'], ec=colors[color], lw=2, zorder=2))
        write(ax, i+.7, y, n, color='ink', ha='center')
    arrow = dict(arrowstyle='-|>', color=colors['soft'], lw=1.2)
    for i in range(len(names)+1): ax.annotate('', (i+.32, y), (i+.1 if i else 0, y), arrowprops=arrow)
    add = next(i for i,o in enumerate(record.ops) if len(o.inputs)>1)
    ax.plot([.15, .15, add+.7], [y, y+.62, y+.62], color=arrow['color'], lw=arrow['lw'])
    ax.annotate('', (add+.7, y+.28), (add+.7, y+.63), arrowprops=arrow)

def draw_block(block:nn.Module, x:torch.Tensor):
    "A residual block before and after"
    folder = BN_Folder()
    before,after = steps(block, x),steps(folder.fold(block, x), x)
    ax = card(3)
    ax.set(xlim=(-.15, len(before.ops)+.4), ylim=(4.3, -.3))
    draw_steps(ax, 1, f'A residual block of ResNet18: {len(before.ops)} steps', before, [])
    taken = [n for r in folder.report.folded for n in r.into]
    draw_steps(ax, 3.1, f'Folded: {len(after.ops)} steps, the same output', after, taken)
    return ax

@call_parse
def main():
    torch.manual_seed(0)
    model,x = resnet18().eval(),torch.randn(1,3,64,64)
    draw_block(model.layer1[0], torch.randn(1,64,16,16)).figure.savefig(images/'block.png', dpi=144)
    models = {'resnet18':model, 'folded':BN_Folder().fold(model, x), 'norms deleted':without_norms(model)}
    result = benchmark(models, x)
    print(result)
    result.plot().figure.savefig(images/'latency.png', dpi=144)
