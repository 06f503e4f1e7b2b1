"""Every refusal and every reason, collected from the source: each must name what it is about and say what to do. New ones are found here by themselves,
and the page that explains the reasons must have them all"""
import ast,json,re
import pytest
from fastfold.core.refusals import REASONS

actions = """add call check compare convert define fold give install leave let load look make move nothing pass put raise remove report run split start subtract
    train try use unfold""".split()
act = re.compile(rf"(?:^|: |; |, | or |\n)`?(?:{'|'.join(actions)})\b", re.I)

def text(e):
    "A message as it stands in the source, with what is filled in between braces"
    if isinstance(e, ast.Constant): return str(e.value)
    if isinstance(e, ast.JoinedStr): return ''.join(map(text, e.values))
    if isinstance(e, ast.FormattedValue): return '{'+ast.unparse(e.value).replace('{', '').replace('}', '')+'}'
    return '{'+ast.unparse(e)+'}'

def is_call(n, *names): return isinstance(n, ast.Call) and getattr(n.func, 'id', getattr(n.func, 'attr', None)) in names

def nodes(root):
    "All syntax nodes of the package"
    return [(f.stem, n) for f in sorted(root.glob('fastfold/**/[!_]*.py')) for n in ast.walk(ast.parse(f.read_text(encoding='utf-8')))]

def refusals(root):
    "Where each `FoldError` is raised -> its message, but for those that are caught on the spot"
    found = nodes(root)
    inner = {r for _,n in found if isinstance(n, ast.Try) for o in n.body for r in ast.walk(o) if isinstance(r, ast.Raise)}
    raised = [(m,n) for m,n in found if isinstance(n, ast.Raise) and n not in inner and is_call(n.exc, 'FoldError', 'ExampleError')]
    return {f'{m}:{n.lineno}': text(n.exc.args[0]) for m,n in raised}

def test_refusals(root):
    found = refusals(root)
    assert len(found)>20
    assert not {k:o for k,o in found.items() if not re.search(r"[{'`]", o)}, 'these name nothing'
    assert not {k:o for k,o in found.items() if not act.search(o)}, 'these say nothing that could be done'
    assert not {k:o for k,o in found.items() if o[-1] in '.!' or re.search(r'\b(invalid|illegal|must)\b', o, re.I)}, 'these blame, or end in a full stop'

def test_reasons_used(root):
    "The table has what the code gives, and nothing else"
    given = {a.value for _,n in nodes(root) if is_call(n, 'Keep', 'reason', 'cross') for a in n.args if isinstance(a, ast.Constant)}
    assert given==set(REASONS)

@pytest.mark.parametrize('key', REASONS)
def test_reason(key):
    what,todo = REASONS[key]
    assert what and what[-1]!='.' and todo and todo[-1]!='.'
    assert key=='neither' or act.search(todo)
    filled_in,wanted = (set(re.findall(r'\{(\w+)', o)) for o in (what, todo))
    assert wanted<=filled_in, 'a remedy can only fill in what the reason has'

def particulars(root):
    "What the reasons 'escapes' and 'obstacle' are completed with"
    for _,n in nodes(root):
        if isinstance(n, ast.Assign) and any(getattr(t, 'attr', None)=='escape' for t in n.targets):
            strings = list(ast.walk(n.value))
            yield from [o for o in strings if isinstance(o, ast.JoinedStr)] or [o for o in strings if isinstance(o, ast.Constant) and o.value]
        if isinstance(n, ast.FunctionDef) and n.name.endswith('_obstacle'):
            yield from [r.value for r in ast.walk(n) if isinstance(r, ast.Return) and getattr(r.value, 'value', True)]

def page(root):
    "What the page of reasons shows, without marks for emphasis"
    cells = json.loads((root/'nbs/guide/reasons.ipynb').read_text(encoding='utf-8'))['cells']
    mds = [o['data'].get('text/markdown', '') for c in cells for o in c.get('outputs', []) if 'data' in o]
    return '\n'.join(map(''.join, mds)).replace('\\|', '|')

def test_page(root):
    "Each piece of a reason that isn't filled in stands on the page"
    shown,all_ = page(root),[s for o in REASONS.values() for s in o] + list(map(text, particulars(root)))
    assert len(all_)>=2*len(REASONS)+6
    pieces = {p.strip(" '") for s in all_ for p in re.split(r'\{[^{}]*\}', s)}
    assert not [p for p in pieces if p not in shown]
