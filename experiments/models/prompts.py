"""Prompts for recording, text for calibration: from a file, or the ones that come with the project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dali.policies.types import InputError

# Prose, dialogue, code, mathematics, lists and other languages: routing differs between them.
BUILT_IN = (
    "The lighthouse keeper counted the ships that passed each night and wrote their number in a ledger. One evening",
    "def merge_sorted(left, right):\n    # Merge two sorted lists into one.\n    result = []\n    i = j = 0\n",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Answer: First we count",
    "Photosynthesis turns light into chemical energy. In the first stage, pigments in the leaf absorb photons, and",
    "Dear Ms. Alvarez,\n\nThank you for your application. We were impressed by your experience, and we would like to",
    "To make a simple bread you need flour, water, salt and yeast. Mix the dry ingredients in a large bowl, then",
    "SELECT customer_id, SUM(amount) AS total FROM orders WHERE order_date >= '2024-01-01' GROUP BY customer_id",
    "Die Geschichte der Eisenbahn beginnt mit hölzernen Schienen in Bergwerken. Im neunzehnten Jahrhundert wurden",
    "Let f be continuous on the closed interval [a, b] and differentiable inside it. Then there is a point c with",
    "User: My laptop does not start after the update. What can I try?\nAssistant: Let us go through it in order.",
    "El mercado abría antes del amanecer. Los vendedores colocaban las naranjas en montones y hablaban en voz baja",
    "In 1854 a physician marked every case of cholera on a map of the city. The pattern around one water pump",
    "#include <stdio.h>\n\nint main(void) {\n    int n[10];\n    for (int i = 0; i < 10; i++) {\n        n[i] = i *",
    "The central bank left its interest rate unchanged on Thursday. Economists had expected the decision, because",
    "Once a river has cut through hard rock, it rarely leaves its bed. The canyon that it makes grows deeper as",
    "1. Define the problem in one sentence.\n2. List what is known and what is not.\n3. Choose the smallest experiment",
)

# What predictors are fitted to, of the same kinds and with no sentence of the above.
CALIBRATION = (
    "The clockmaker's daughter found a drawer that nobody had opened for thirty years. Inside lay a brass key and",
    "class Graph:\n    # Directed graph with weighted edges.\n    def __init__(self):\n        self.edges = {}\n",
    "Question: A tank holds 240 litres and loses 3 litres a minute. When is it half empty? Answer: Half of the tank",
    "Volcanic soils are fertile because the ash weathers quickly. Minerals such as olivine and feldspar break down",
    "Dear colleagues,\n\nThe workshop on Tuesday has been moved to the large meeting room. Please bring your notes and",
    "For the soup, cut two onions and a leek into thin rings. Heat the butter slowly, add the vegetables, and stir",
    "CREATE TABLE measurement (station INTEGER NOT NULL, taken_at TIMESTAMP, celsius REAL, PRIMARY KEY (station,",
    "Wenn im Herbst der Nebel über dem Tal liegt, hört man die Kirchenglocken bis hinauf zu den Almen. Die Bauern",
    "Suppose that n is an odd integer. Then n equals 2k + 1 for some integer k, and its square is 4k(k + 1) + 1, so",
    "User: Which train should I take to be in the city before noon?\nAssistant: That depends on where you start. From",
    "La rivière descendait lentement entre les peupliers. Sur la rive, deux enfants jetaient des cailloux et",
    "By the end of the fifteenth century printers had set up shop in more than two hundred towns. Paper was cheap, and",
    "fn main() {\n    let mut words: Vec<String> = Vec::new();\n    for line in std::io::stdin().lines() {\n",
    "Shares of the shipping company rose by four per cent after it reported higher freight rates. Analysts said that",
    "A glider has no engine, yet it can stay in the air for hours. Its pilot looks for rising air above warm fields,",
    "Checklist before departure:\n- passports and tickets\n- chargers and adapters\n- keys left with the neighbours\n-",
)


def read_prompts(path: str | Path | None) -> list[str]:
    """Prompts of a file, or the built-in ones; InputError names the file and line of what is no prompt."""
    if path is None:
        return list(BUILT_IN)
    path = Path(path)
    lines = _text(path).splitlines()
    given = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not given:
        raise InputError(f"{path}: found no prompt, expected one a line")
    if path.suffix == ".jsonl":
        return [_from_json(line, f"{path} line {number}") for number, line in given]
    return [line for _, line in given]


def read_texts(path: str | Path) -> list[str]:
    """Texts of a file: one in each line of a .jsonl file, else the whole file as one; errors as `read_prompts`."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return read_prompts(path)
    text = _text(path)
    if not text.strip():
        raise InputError(f"{path}: found no text")
    return [text]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _from_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("text"))
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: found {line[:40]!r}, expected {{"prompt": TEXT}} or {{"text": TEXT}}')
    return value


def to_length(ids: Sequence[int], length: int) -> list[int]:
    """The first `length` of the tokens, repeated from the start as often as it takes."""
    return (list(ids) * (-(-length // len(ids))))[:length]
