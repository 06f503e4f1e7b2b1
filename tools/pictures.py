"""Draw the pictures of the README: one block before and after, from a record of what it runs, and what the forms of
four networks take, as measured here on one thread"""
from pathlib import Path
from matplotlib import pyplot as plt
from torch import nn
from torchvision.models import efficientnet_b0, mobilenet_v3_large, resnet18, resnet50
import torch
from fastcore.script import call_parse
from fastfold.lab.bench import bench_note, benchmark
from fastfold.lab.fastest import draw_forms
from fastfold.lab.models import quiet
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

def mobileone() -> nn.Module:
    "A network for phones whose parallel branches become one layer"
    import timm
    return timm.create_model('mobileone_s1')

networks = {'mobilenet_v3_large':mobilenet_v3_large, 'efficientnet_b0':efficientnet_b0, 'resnet50':resnet50,
    'mobileone_s1, with merge=True':mobileone}
tried = 'folded', 'folded, channels_last', 'original, channels_last', 'jit.freeze', 'optimize_for_inference'

def measure_forms(make, merge:bool, batch:int, rounds:int):
    "The result of `benchmark` for one network, on pictures of 224 pixels"
    torch.manual_seed(0)
    model,x = make().eval(),torch.randn(1,3,224,224)
    with quiet():
        folded = BN_Folder(merge=merge).fold(model, x)
        return benchmark(dict(original=model, folded=folded), x, (batch,), rounds, 0., forms=tried)

def draw_networks(batch:int, rounds:int):
    "What the forms of each network take, in the order of their names above"
    groups = {}
    for name,make in networks.items():
        merge = 'merge' in name
        result = measure_forms(make, merge, batch, rounds)
        print(name, result, sep='\n', flush=True)
        rows = [o for o in result.rows if o.model!='original']
        groups[name] = [o._replace(model=o.model.replace('folded', 'merged')) if merge else o for o in rows]
    return draw_forms(groups, f'batch of {batch} at 224 pixels; {bench_note(result)}')

@call_parse
def main(
    rounds:int=7, # Measurements of each form
    batch:int=8, # Pictures per pass
):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    draw_block(resnet18().eval().layer1[0], torch.randn(1,64,16,16)).figure.savefig(images/'block.png', dpi=144)
    draw_networks(batch, rounds).figure.savefig(images/'latency.png', dpi=144)
