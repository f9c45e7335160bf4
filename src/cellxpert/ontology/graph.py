"""The Cell Ontology as a graph of is_a: names, ancestors, distances, and an order for drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from cellxpert.errors import OntologyError, OntologyMissingError

__all__ = ["CellOntology"]


class CellOntology:
    """Types of cells, and which are kinds of which.

    Without arguments, the newest release of the Cell Ontology that ``cellxgene-ontology-guide`` holds. Only is_a counts, between
    terms that are not obsolete. Of any other graph, :meth:`from_terms`.

    Attributes
    ----------
    version
        Release of the ontology, such as ``"v2026-03-26"``.
    terms
        All terms, in the order of the ontology.

    Raises
    ------
    OntologyMissingError
        If the package with the ontology is not installed.
    """

    def __init__(self) -> None:
        try:
            from cellxgene_ontology_guide.supported_versions import CXGSchema
        except ImportError as error:
            raise OntologyMissingError(
                "cellxpert.ontology",
                found="the package cellxgene-ontology-guide is not installed",
                fix='pip install "cellxpert[ontology]"',
            ) from error
        schema = CXGSchema()  # without a version, the newest
        raw = schema.ontology("CL")
        current = {
            # the guide's ancestors come with their distance: those at 1 are the parents
            term: (info["label"], tuple(a for a, d in info["ancestors"].items() if d == 1), info.get("synonyms", ()))
            for term, info in raw.items()
            # ancestors without a parent: cytoplasms and nuclei, which are parts of cells and no cells
            if not info["deprecated"] and (not info["ancestors"] or 1 in info["ancestors"].values())
        }
        obsolete = {term: info.get("replaced_by", "") for term, info in raw.items() if info["deprecated"]}
        self._fill(current, obsolete, version=schema.supported_ontologies["CL"]["version"])

    @classmethod
    def from_terms(
        cls,
        terms: Mapping[str, tuple[str, Iterable[str], Iterable[str]]],
        *,
        obsolete: Mapping[str, str] | None = None,
        version: str = "",
    ) -> CellOntology:
        """Make an ontology of a plain mapping.

        Parameters
        ----------
        terms
            Term to its name, its parents and its synonyms.
        obsolete
            Obsolete terms, to what replaces them ("" if nothing does).
        version
            What to call this ontology.

        Raises
        ------
        OntologyError
            If a parent is not a term, or a term is its own ancestor.
        """
        self = cls.__new__(cls)
        self._fill(terms, obsolete or {}, version=version)
        return self

    def _fill(
        self,
        terms: Mapping[str, tuple[str, Iterable[str], Iterable[str]]],
        obsolete: Mapping[str, str],
        *,
        version: str,
    ) -> None:
        self.version = version
        self.terms = tuple(terms)
        self._names = {term: name for term, (name, _, _) in terms.items()}
        self._parents = {term: tuple(dict.fromkeys(parents)) for term, (_, parents, _) in terms.items()}
        self._synonyms = {term: tuple(synonyms) for term, (_, _, synonyms) in terms.items()}
        self._obsolete = dict(obsolete)
        self._children: dict[str, list[str]] = {term: [] for term in terms}
        for term, parents in self._parents.items():
            for parent in parents:
                if parent not in self._children:
                    found = f"{term} is a kind of {parent}, which is no term"
                    raise OntologyError("ontology", found=found, fix="add the parent, or leave it out")
                self._children[parent].append(term)
        self._ancestors: dict[str, frozenset[str]] = {}
        self._descendants: dict[str, frozenset[str]] = {}
        self._depths = self._all_depths()

    def _all_depths(self) -> dict[str, int]:
        """Longest way down from a root to each term; every term has one unless there is a cycle."""
        waiting = {term: len(parents) for term, parents in self._parents.items()}
        depths = {term: 0 for term, n in waiting.items() if n == 0}
        for term in (todo := list(depths)):  # grows while it is walked
            for child in self._children[term]:
                depths[child] = max(depths.get(child, 0), depths[term] + 1)
                waiting[child] -= 1
                if waiting[child] == 0:
                    todo.append(child)
        if circular := [term for term, n in waiting.items() if n]:
            raise OntologyError(
                "ontology", found=f"is_a runs in a circle: {circular[:5]}", fix="remove one of its edges"
            )
        return depths

    def __contains__(self, term: object) -> bool:
        return term in self._names

    def __len__(self) -> int:
        return len(self.terms)

    def __repr__(self) -> str:
        return f"CellOntology({len(self)} terms, version {self.version or 'unknown'})"

    def name(self, term: str) -> str:
        """Name of a term.

        Raises
        ------
        OntologyError
            If the term is unknown or obsolete; so for every method that takes a term.
        """
        return self._names[self._known(term)]

    def synonyms(self, term: str) -> tuple[str, ...]:
        """Other names that mean exactly this term."""
        return self._synonyms[self._known(term)]

    def parents(self, term: str) -> tuple[str, ...]:
        """Terms that this one is a kind of, with none between."""
        return self._parents[self._known(term)]

    def ancestors(self, term: str) -> frozenset[str]:
        """All terms that this one is a kind of, without itself."""
        return self._closure(self._known(term), self._parents, self._ancestors)

    def descendants(self, term: str) -> frozenset[str]:
        """All terms that are kinds of this one, without itself."""
        return self._closure(self._known(term), self._children, self._descendants)

    @staticmethod
    def _closure(term: str, step: Mapping[str, Iterable[str]], cache: dict[str, frozenset[str]]) -> frozenset[str]:
        if term not in cache:
            seen: set[str] = set()
            todo = list(step[term])
            while todo:
                if (following := todo.pop()) not in seen:
                    seen.add(following)
                    todo += step[following]
            cache[term] = frozenset(seen)
        return cache[term]

    def is_a(self, a: str, b: str) -> bool:
        """Whether ``a`` is ``b`` or a kind of it."""
        return self._known(a) == self._known(b) or b in self.ancestors(a)

    def depth(self, term: str) -> int:
        """Edges of the longest way from a root to a term, so that a kind is always deeper than what it is a kind of."""
        return self._depths[self._known(term)]

    def distance(self, a: str, b: str) -> float:
        """Edges of the shortest way from ``a`` up to a common ancestor and down to ``b``; infinity if there is none.

        Either may be the common ancestor itself. Ways through a common *descendant* do not count: that some rare type is a kind of
        both makes two types no more alike. So it is no metric in the strict sense: the triangle inequality may fail.
        """
        ups, others = self._ups(self._known(a)), self._ups(self._known(b))
        return min((ups[term] + others[term] for term in ups.keys() & others.keys()), default=math.inf)

    def _ups(self, term: str) -> dict[str, int]:
        """Edges of the shortest way up to each ancestor, and 0 to the term itself."""
        steps = {term: 0}
        for here in (todo := [term]):  # breadth first: the list grows while it is walked
            for parent in self._parents[here]:
                if parent not in steps:
                    steps[parent] = steps[here] + 1
                    todo.append(parent)
        return steps

    def common_ancestor(self, terms: Iterable[str]) -> str:
        """Deepest term that all are, or are kinds of; of equally deep ones that with the fewest kinds, then the first id.

        Raises
        ------
        OntologyError
            If there are no terms, or they have nothing in common.
        """
        each = [self.ancestors(term) | {term} for term in terms]
        shared = frozenset.intersection(*each) if each else frozenset()
        if not shared:
            raise OntologyError(
                "common_ancestor", found=f"nothing that {len(each)} terms share", fix="give related terms"
            )
        return min(shared, key=lambda term: (-self.depth(term), len(self.descendants(term)), term))

    def order(self, terms: Iterable[str]) -> list[str]:
        """Put terms in an order in which related ones are neighbours, each once.

        A depth-first walk of the tree that the terms and their ancestors make, types before their kinds. Where a term has several
        parents it hangs on that which has most of the terms above it, then on one that has others of the terms below it, then on
        the one with the fewest kinds: "lymphocyte" says more than "motile cell". Does not depend on the order given.
        """
        wanted = {self._known(term) for term in terms}
        kept = wanted.union(*(self.ancestors(term) for term in wanted))
        kinds: dict[str, list[str]] = {}
        roots = []
        for term in sorted(kept, key=lambda t: (self._names[t], t)):
            if parents := self._parents[term]:
                kinds.setdefault(self._closest(term, parents, wanted), []).append(term)
            else:
                roots.append(term)
        walk, todo = [], roots[::-1]
        while todo:
            term = todo.pop()
            walk.append(term)
            todo += kinds.get(term, [])[::-1]
        return [term for term in walk if term in wanted]

    def _closest(self, term: str, parents: Iterable[str], wanted: set[str]) -> str:
        """The parent under which a term stands in :meth:`order`."""
        others = wanted - self.descendants(term) - {term}

        def rank(parent: str) -> tuple[int, bool, int, str]:
            below = self.descendants(parent)
            n_above = len(wanted & (self.ancestors(parent) | {parent}))
            return -n_above, not others & below, len(below), parent

        return min(parents, key=rank)

    def _known(self, term: str) -> str:
        if term in self._names:
            return term
        where = "Cell Ontology" + (f" {self.version}" if self.version else "")
        if term in self._obsolete:
            instead = self._obsolete[term]
            close = [self._shown(instead)] if instead in self._names else []
            raise OntologyError(where, found=f"{term} is obsolete", fix=_use(close, "look up what replaces it"))
        raise OntologyError(
            where, found=f"no term {term!r}", fix=_use(self._close(term), 'give an id such as "CL:0000084"')
        )

    def _shown(self, term: str) -> str:
        return f"{term} ({self._names[term]})"

    def _close(self, text: object) -> list[str]:
        """Terms whose id or name, or a synonym, looks like the text."""
        text = str(text)
        by_name = {name.lower(): term for term, names in self._synonyms.items() for name in names}
        by_name |= {name.lower(): term for term, name in self._names.items()}
        close = get_close_matches(text.lower(), by_name, n=3, cutoff=0.7)
        terms = [by_name[name] for name in close] or get_close_matches(text, self.terms, n=3, cutoff=0.8)
        return [self._shown(term) for term in dict.fromkeys(terms)]


def _use(close: Sequence[str], otherwise: str) -> str:
    return f"did you mean {' or '.join(close)}?" if close else otherwise
