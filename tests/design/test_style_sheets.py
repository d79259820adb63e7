"""Any panel may stand beside any other: no style sheet may restyle what another one draws."""

import re
from collections import defaultdict

from ot_notebook.widgets.markup import STATIC

RULE = re.compile(r"(?:^|\})\s*([^{}@]+)\{", re.MULTILINE)
ALONE = re.compile(r"(?:\.ot )?(\.ot-[a-z-]+)")
BODY = re.compile(r"([^{}]+)\{([^{}]*)\}")
NESTED = re.compile(r"@[^{;]+\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def test_no_two_style_sheets_define_one_class():
    homes = defaultdict(set)
    for sheet in STATIC.glob("*.css"):
        text = COMMENT.sub("", sheet.read_text(encoding="utf-8"))
        for selectors in RULE.findall(text):
            for selector in selectors.split(","):
                if alone := ALONE.fullmatch(selector.strip()):
                    homes[alone[1]].add(sheet.name)
    assert len(homes) > 100
    assert {name: sheets for name, sheets in homes.items() if len(sheets) > 1} == {}


def test_no_rule_undoes_an_earlier_one_of_the_same_selector():
    for sheet in STATIC.glob("*.css"):
        seen = defaultdict(set)
        text = NESTED.sub("", COMMENT.sub("", sheet.read_text(encoding="utf-8")))
        for selectors, body in BODY.findall(text):
            given = {line.partition(":")[0].strip() for line in body.split(";") if line.strip()}
            key = " ".join(selectors.split())
            assert not seen[key] & given, f"{sheet.name}: {key}"
            seen[key] |= given
