"""Answers to comparable strings: the normaliser of the published evaluation with its quirks, and a plain one of our own.

`upstream_normalise` behaves as the normaliser of VQA (Antol et al. 2015) in the form used by the published MedPLIB evaluation.
"""

from __future__ import annotations

import re
import unicodedata

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset(("a", "an", "the"))

_UPSTREAM_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # in this order, each tested against the whole text
_UPSTREAM_PERIODS = 32  # a flag passed in the place of a count; the published numbers were made with it

# Every contraction that is restored; it is recognised when exactly one of its apostrophes is missing.
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll "
    "how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't "
    "she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)


def _restorations() -> dict[str, str]:
    """Misspelling -> contraction. One pair runs the other way in the published table and is kept."""
    table = {"somebody'd": "somebodyd"}
    for word in _CONTRACTED.split():
        for at in (i for i, letter in enumerate(word) if letter == "'"):
            table[word[:at] + word[at + 1 :]] = word
    return table


_RESTORED = _restorations()
_UPSTREAM_NUMBERS = {"none": "0"} | _DIGITS


def upstream_normalise(text: str) -> str:
    """Lower case, punctuation, articles, number words and contractions as the published evaluation treats them.

    Quirks kept: a punctuation mark vanishes where it touches a space anywhere in the text (or where the text has a comma between digits),
    and becomes a space otherwise; only the first 32 periods that no digit follows are removed; "none" becomes "0".
    """
    lowered = text.lower()
    digit_comma = re.search(r"\d,\d", lowered) is not None
    cleaned = lowered
    for mark in _UPSTREAM_PUNCTUATION:
        vanishes = digit_comma or mark + " " in lowered or " " + mark in lowered
        cleaned = cleaned.replace(mark, "" if vanishes else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=_UPSTREAM_PERIODS)
    words = (_UPSTREAM_NUMBERS.get(word, word) for word in cleaned.split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def normalise(text: str) -> str:
    """Unicode-folded (NFKC, case), words of letters and digits joined by single spaces, articles dropped, number words as digits.

    A point or comma between digits stays with the number ("3.5" is not "35"; the comma of "1,200" is dropped), an apostrophe inside a word
    is dropped ("don't" = "dont"), every other mark separates words ("T1-weighted" = "t1 weighted") and vanishes: "<5 %" is "5".
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    folded = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", folded)
    folded = re.sub(r"(?<=\w)'(?=\w)", "", folded)
    # A point between digits is the only mark that survives; "_" counts as a letter for \w and is a mark here.
    words = re.findall(r"\d+\.\d+|[^\W_]+", folded)
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)
