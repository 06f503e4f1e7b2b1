"""The layout of the package: rooms of a size that one can keep in mind, imports in one direction, and notebooks that
show one thing at a time. A notebook can't teach this: it is about all of them together"""
import ast,json,re
from graphlib import TopologicalSorter
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
rooms = {'.'.join(f.relative_to(root).with_suffix('').parts): f for f in sorted(root.glob('fastfold/**/[!_]*.py'))}

# part -> the parts that it may import; those at the top are single rooms
floors = dict(core=[], report=['core'], merge=['core'], folder=['core', 'merge', 'report'],
    identities=['core', 'report'], training=['core', 'report', 'folder'],
    learner=['core', 'report', 'folder', 'training'], saved=['core', 'report', 'folder', 'training', 'learner'],
    lab=['core', 'merge', 'report', 'folder', 'learner'],
    all=['core', 'report', 'folder', 'identities', 'learner', 'lab'],
    cli=['core', 'report', 'folder', 'saved', 'lab'])

def part(room): return room.split('.')[1]

def imports(room):
    "Rooms that `room` imports, at the top or inside of a function -> whether it does so when it is imported itself"
    tree,here = ast.parse(rooms[room].read_text(encoding='utf-8')),room.split('.')
    top = set(map(id, tree.body))
    found = {}
    for n in ast.walk(tree):
        if not isinstance(n, ast.ImportFrom) or not n.level: continue
        to = '.'.join([*here[:len(here)-n.level], n.module or ''])
        if to in rooms: found[to] = found.get(to, False) or id(n) in top
    return found

@pytest.mark.parametrize('room', rooms)
def test_direction(room):
    "What a room imports at once is of its own part, or of a part below it"
    later = {'learner': ['lab'], 'core': ['core']} # `fold_bench` measures when it is called
    for to,at_once in imports(room).items():
        allowed = {part(room), *floors[part(room)], *(() if at_once else later.get(part(room), ()))}
        assert part(to) in allowed, f'{room} imports {to}'

def test_no_circles():
    needs = {room: [to for to,at_once in imports(room).items() if at_once] for room in rooms}
    assert set(TopologicalSorter(needs).static_order())==set(rooms)

@pytest.mark.parametrize('room', rooms)
def test_size(room): assert len(rooms[room].read_text(encoding='utf-8').splitlines())<=350

def exported_cells(nb):
    "The source of each cell that goes into the package, without its first line"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    return [s.partition('\n')[2] for s in sources if s.startswith('#| export')]

def definitions(source):
    "Names of the functions and classes that `source` defines"
    return [o.name for o in ast.parse(source).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]

def is_room(nb): return '.ipynb_checkpoints' not in nb.parts and exported_cells(nb)

notebooks = [o for o in sorted((root/'nbs').rglob('*.ipynb')) if is_room(o)]

@pytest.mark.parametrize('nb', notebooks, ids=lambda o: o.stem)
def test_cells(nb):
    "120 columns, one definition a cell, and docstrings that begin with a verb"
    for source in exported_cells(nb):
        assert not [o for o in source.splitlines() if len(o)>120]
        defs = definitions(source)
        assert len([o for o in defs if o[0]!='_'])<=1, f'{", ".join(defs)} stand in one cell'
        told = [o for o in ast.walk(ast.parse(source)) if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
        asks = r'(What|Which|Where|Why|How|Is|Does|Are|Can)\b'
        for o in told: assert not re.match(asks, ast.get_docstring(o) or ''), f'{o.name} is not told, but asked'

@pytest.mark.parametrize('nb', notebooks, ids=lambda o: o.stem)
def test_lessons(nb):
    "Each definition is shown before the next one"
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    waits = ''
    for s in [''.join(c['source']) for c in cells if c['cell_type']=='code']:
        if s.startswith('#| export'):
            defs = [o for o in definitions(s.partition('\n')[2]) if o[0]!='_']
            if defs: assert not waits, f'nothing is shown of {waits}'
            if defs: waits = defs[0]
        elif not s.startswith('#| hide'): waits = ''
    assert not waits, f'nothing is shown of {waits}'

def test_core_is_alone():
    "The engine knows nothing of fastai, pictures or the command line"
    for room in rooms:
        if part(room) in ('core', 'merge', 'folder'):
            text = rooms[room].read_text(encoding='utf-8')
            assert not re.search(r'^\s*(from|import) (fastai|pandas|matplotlib)\b', text, flags=re.M), room
