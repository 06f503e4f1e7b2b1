"""Every refusal and every reason, collected from the source: each must name what it is about and say what to do. New
ones are found here by themselves, and the page that explains the reasons must have them all"""
import ast,json,re
import pytest
from fastfold.core.refusals import ESCAPES, REASONS
from fastfold.merge.obstacles import UNMERGED

actions = """add call check compare convert define fold give install leave let load look make mend merge move nothing
    pass put raise remove report run set split start subtract train try use unfold""".split()
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
    trees = [(f.stem, ast.parse(f.read_text(encoding='utf-8'))) for f in sorted(root.glob('fastfold/**/[!_]*.py'))]
    return [(name, n) for name,tree in trees for n in ast.walk(tree)]

def refusals(root):
    "Where each `FoldError` is raised -> its message, but for those that are caught on the spot"
    found = nodes(root)
    tries = [o for _,n in found if isinstance(n, ast.Try) for o in n.body]
    inner = {r for o in tries for r in ast.walk(o) if isinstance(r, ast.Raise)}
    raised = [(m,n) for m,n in found
        if isinstance(n, ast.Raise) and n not in inner and is_call(n.exc, 'FoldError', 'ExampleError')]
    return {f'{m}:{n.lineno}': text(n.exc.args[0]) for m,n in raised}

def test_refusals(root):
    found = refusals(root)
    assert len(found)>20
    assert not {k:o for k,o in found.items() if not re.search(r"[{'`]", o)}, 'these name nothing'
    assert not {k:o for k,o in found.items() if not act.search(o)}, 'these say nothing that could be done'
    blames = {k:o for k,o in found.items() if o[-1] in '.!' or re.search(r'\b(invalid|illegal|must)\b', o, re.I)}
    assert not blames, 'these blame, or end in a full stop'

tables = {'CannotFold':REASONS, 'CannotMerge':UNMERGED, 'escape':ESCAPES}

def keys_given(root):
    "Keys of reasons that the code gives, by the table that they are of"
    res = {name:set() for name in tables}
    for _,n in nodes(root):
        if not isinstance(n, ast.Call): continue
        name = getattr(n.func, 'id', getattr(n.func, 'attr', ''))
        parts = [a for o in n.args for a in ast.walk(o)]
        keys = {a.value for a in parts if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        if name in tables: res[name] |= keys
        if name in ('reason', 'cross'): res['CannotFold'] |= keys
        is_question = name in ('note', 'wonder') and n.args and isinstance(n.args[0], ast.Constant)
        if is_question: res['CannotFold'].add(n.args[0].value) # its kind is the reason
    return res

def test_reasons_used(root):
    "The tables have what the code gives, and nothing else"
    given = keys_given(root)
    for name,table in tables.items(): assert given[name]==set(table), name

@pytest.mark.parametrize('table,key', [(name,k) for name,table in tables.items() for k in table])
def test_reason(table, key):
    o = tables[table][key]
    assert o.why and o.why[-1]!='.' and (o.remedy or key=='container') and o.remedy[-1:]!='.'
    assert act.search(o.todo)
    filled_in,wanted = (set(re.findall(r'\{(\w+)', t)) for t in (o.why, o.remedy))
    assert wanted<=filled_in, 'a remedy can only fill in what the reason has'

def particulars(root):
    "What the reason 'obstacle' is completed with"
    for _,n in nodes(root):
        if isinstance(n, ast.FunctionDef) and n.name.endswith('_obstacle'):
            returned = [o for r in ast.walk(n) if isinstance(r, ast.Return) for o in ast.walk(r)]
            texts = [o for o in returned if isinstance(o, ast.Constant)]
            yield from [o for o in texts if isinstance(o.value, str) and ' ' in o.value]

def page(root):
    "What the page of reasons shows, without marks for emphasis"
    cells = json.loads((root/'nbs/guide/reasons.ipynb').read_text(encoding='utf-8'))['cells']
    mds = [o['data'].get('text/markdown', '') for c in cells for o in c.get('outputs', []) if 'data' in o]
    return '\n'.join(map(''.join, mds)).replace('\\|', '|')

def test_page(root):
    "Each piece of a reason that isn't filled in stands on the page"
    shown,all_ = page(root),[s for table in tables.values() for o in table.values() for s in (o.why, o.remedy)]
    all_ += map(text, particulars(root))
    assert len(all_)>=2*len(REASONS)+6
    pieces = {p.strip(" '") for s in all_ for p in re.split(r'\{[^{}]*\}', s)}
    assert not [p for p in pieces if p not in shown]
