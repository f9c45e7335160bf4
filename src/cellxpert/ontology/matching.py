"""Names of types of cells, as people write them, to terms of the Cell Ontology.

A label is read as a set of words: case, plurals, separators, word order and the word "cell" do not count; "CD14+", "CD14-positive",
"CD14pos" and "CD14" are one word, and "CD14-" is another. Names and synonyms of the ontology are read in the same way.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from cellxpert.errors import CellxPertWarning
from cellxpert.ontology.abbreviations import CONTEXTS, MISLEADING, PHRASES, WORDS
from cellxpert.ontology.graph import CellOntology

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["match_labels"]

Key = tuple[str, ...]
Found = tuple[frozenset[str], str]
"""Terms, and how they were found."""

_GREEK = str.maketrans({"α": " alpha ", "β": " beta ", "γ": " gamma ", "δ": " delta ", "ε": " epsilon "})
_ID = re.compile(r"CL[:_]\d{7}")
_SIGNS = {"+": r"pos|positive", "~": r"neg|negative", "^": r"hi|high|bright", "<": r"lo|low|dim"}
"""How a word that is a marker ends when it has been read, and how that is written."""
_SIGN_WORDS = "|".join(_SIGNS.values())
_ATTACHED = re.compile(rf"\b([A-Z][A-Z0-9]+)({_SIGN_WORDS})\b")
"""CD56bright, KLRG1pos: markers are told from words by their capitals."""
_CAPITALS = re.compile(r"\b([A-Z]{2,})s\b")
"""DCs, HSCs."""
_MINUS = re.compile(r"([a-z0-9]+)-(?=$|[\s/,;)]|cd\d)")
_MARKER = re.compile(r"cd\d+[a-z]*")
_FILLERS = frozenset({"cell", "of", "the"})
_LEFT_OUT = re.compile(r".+[+~^<]|v[abgd]\d+|\d+|activated|cycling|proliferating|quiescent|resting")
"""Words without which a label still names what its cells are: markers, chains of the T-cell receptor, numbers of clusters, states."""
_MOST_LEFT_OUT = 4
_ONE_SPECIES = ("(Mmus)", "(Primate)", "(Homo sapiens)")
"""How names of types end that are clusters of an atlas."""


def match_labels(
    labels: Iterable[Hashable], *, given: Mapping[str, str] | None = None, ontology: CellOntology | None = None
) -> pd.DataFrame:
    """Find the term of the Cell Ontology for each label.

    Nothing is guessed: what no rule reaches stays unmatched. Look the table over before it is used, and put right what is wrong
    with ``given``.

    Parameters
    ----------
    labels
        Labels, each as often as wanted. In which tissue they are, and so what "alpha" means, is told from all of them together.
    given
        Label to term, which wins over every rule; "" for a label that shall have none. Labels are found as they are, or as text.
    ontology
        Default: the newest release in ``cellxgene-ontology-guide``.

    Returns
    -------
    pandas.DataFrame
        One row per label, in the order of their first occurrence: ``term`` ("" if none), ``name`` of the term, and ``how`` it was found.
        By its ``"id"``, as ``"given"``, as a ``"name"`` or ``"synonym"`` letter for letter, ``"normalised"`` as above, with an
        ``"abbreviation"`` of the field written out, or as ``"general"``: without markers, numbers and states that the ontology does
        not know for these cells, so that the term is true but coarser than the label ("NK CD158e1+" is a natural killer cell).
        ``"ambiguous"`` labels have several terms of equal standing, which are in ``name``, and are unmatched, as are those
        with ``""``.

    Raises
    ------
    OntologyError
        If a term in ``given``, or a label that is written like a term, is unknown or obsolete.
    OntologyMissingError
        If ``ontology`` is None and the package with the ontology is not installed.

    Warns
    -----
    CellxPertWarning
        If ``given`` names labels that do not occur.

    Examples
    --------
    >>> ontology = CellOntology.from_terms({"X:1": ("T cell", [], ["T lymphocyte"]), "X:2": ("monocyte", [], [])})
    >>> match_labels(["T-lymphocytes", "Mono", "CD57+ T", "Doublets"], ontology=ontology)["how"].tolist()
    ['normalised', 'abbreviation', 'general', '']
    """
    import pandas as pd

    ontology = CellOntology() if ontology is None else ontology
    unique = list(dict.fromkeys("" if pd.isna(label) else label for label in labels))
    find = _finder(ontology, [str(label) for label in unique])
    given, rows = dict(given or {}), []
    if lost := sorted({str(label) for label in given} - {str(label) for label in unique}):
        text = f"match_labels(given=): no label is {lost[:10]}; they are written as the labels are, letter for letter"
        warnings.warn(text, CellxPertWarning, stacklevel=2)
    for label in unique:
        if (known := given.get(label, given.get(str(label)))) is not None:
            terms, how = frozenset({known} - {""}), "given"
        else:
            terms, how = find(str(label).strip())
        names = " or ".join(sorted(ontology.name(term) for term in terms))
        rows.append(("", names, "ambiguous") if len(terms) > 1 else (next(iter(terms), ""), names, how))
    return pd.DataFrame(rows, columns=["term", "name", "how"], index=pd.Index(unique, name="label", dtype=object))


def _finder(ontology: CellOntology, labels: list[str]) -> Callable[[str], Found]:
    """Make the function that finds the terms of one label."""
    by_name: dict[str, set[str]] = {}
    by_synonym: dict[str, set[str]] = {}
    for term in ontology.terms:
        by_name.setdefault(ontology.name(term), set()).add(term)
        for synonym in _trusted(ontology, term):
            by_synonym.setdefault(synonym, set()).add(term)
    tables = [*_contexts(labels), PHRASES]
    known = [_keyed({phrase: t for phrase, t in table.items() if _all_in(t, ontology)}) for table in tables]
    normalised = [_keyed(by_name), _keyed(by_synonym)]

    def look_up(key: Key) -> Found:
        for how, indices in (("abbreviation", known), ("normalised", normalised)):
            for index in indices:
                if terms := index.get(key):
                    return terms, how
        return frozenset(), ""

    def read(words: Key) -> Found:
        for written_out, key in _spellings(words):
            terms, how = look_up(key)
            if terms:
                return terms, "abbreviation" if written_out else how
        return frozenset(), ""

    def find(label: str) -> Found:
        as_id = label if label in ontology else label.replace("_", ":")
        if as_id in ontology or _ID.fullmatch(label):
            ontology.name(as_id)  # raises for those that are unknown or obsolete
            return frozenset({as_id}), "id"
        for how, index in (("name", by_name), ("synonym", by_synonym)):
            if label in index:
                return frozenset(index[label]), how
        words = _words(label)
        if (found := read(words))[0]:
            return found
        extra = [i for i, word in enumerate(words) if _LEFT_OUT.fullmatch(word)]
        for n_left_out in range(1, min(len(extra), _MOST_LEFT_OUT) + 1):
            terms: frozenset[str] = frozenset()
            for left_out in combinations(extra, n_left_out):
                terms |= read(tuple(word for i, word in enumerate(words) if i not in left_out))[0]
            if terms:
                return terms, "general"
        return frozenset(), ""

    return find


def _trusted(ontology: CellOntology, term: str) -> Iterator[str]:
    """Synonyms that may be matched by themselves.

    Not those of one or two letters (neurons of crabs, mostly), and not the names of clusters in atlases of one species, unless they
    are numbered: "VIP" and "Vip Gaba" would be a type of the primate striatum.
    """
    one_species = ontology.name(term).endswith(_ONE_SPECIES)
    for synonym in ontology.synonyms(term):
        if len(synonym) > 2 and synonym not in MISLEADING and (synonym[0].isdigit() or not one_species):
            yield synonym


def _contexts(labels: list[str]) -> list[Mapping[str, str | tuple[str, ...]]]:
    """Tables of the tissues that the labels are from."""
    keys = {_words(label) for label in labels}
    return [table for cues, table in CONTEXTS if len({_words(cue) for cue in cues} & keys) > 1]


def _all_in(terms: str | tuple[str, ...], ontology: CellOntology) -> bool:
    return all(term in ontology for term in ((terms,) if isinstance(terms, str) else terms))


def _keyed(index: Mapping[str, str | Iterable[str]]) -> dict[Key, frozenset[str]]:
    """Index by what is left of a phrase when it is read, in all the ways in which the field would write it."""
    keyed: dict[Key, frozenset[str]] = {}
    for phrase, terms in index.items():
        ids = frozenset({terms} if isinstance(terms, str) else terms)
        for key in {_sorted(_words(phrase)), _sorted(_written_out(_words(phrase)))} - {()}:
            keyed[key] = keyed.get(key, frozenset()) | ids
    return keyed


def _spellings(words: Key) -> Iterator[tuple[bool, Key]]:
    """Keys under which to look words up, best first, and whether anything was written out."""
    full = _written_out(words)
    yield False, _sorted(words)
    yield True, _sorted(full)
    if {"cd4+", "cd8+"} & set(full):
        # in the blood these are alpha-beta T cells, and the ontology says so in their names
        yield True, _sorted((*full, *({"alpha", "beta", "t"} - set(full))))


def _written_out(words: Key) -> Key:
    return tuple(part for word in words for part in WORDS.get(word, word).split())


def _sorted(words: Key) -> Key:
    """Return words in an order of their own; nothing for a single letter, unless it is that of T or B cells."""
    return () if len(words) == 1 and len(words[0]) == 1 and words[0] not in {"t", "b"} else tuple(sorted(words))


def _words(text: str) -> Key:
    """Read a text as words, markers with their sign."""
    text = unicodedata.normalize("NFKC", text).translate(_GREEK)
    text = _CAPITALS.sub(r"\1", _ATTACHED.sub(r"\1 \2", text.replace("_", " "))).casefold()
    text = re.sub(r"\(([+-])\)", r"\1", text)
    text = re.sub(r"\b(t|b)(cell)|(helper|type|group)(\d+)", r"\1\3 \2\4", text)
    text = re.sub(r"\bnon[\s-]+", "non", text)
    text = _MINUS.sub(r"\1~ ", text)
    for sign, written in _SIGNS.items():
        text = re.sub(rf"([a-z0-9]+)[\s-]+(?:{written})\b", rf"\1{sign} ", text)
    words = (_singular(word) for word in re.findall(r"[a-z0-9]+[+~^<]?", text))
    return tuple(f"{word}+" if _MARKER.fullmatch(word) else word for word in words if word not in _FILLERS)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
