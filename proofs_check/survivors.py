"""Why a mutant is not caught, by (module, line text, altered text).

EQUIVALENT   the altered code is provably the same function on everything it accepts; counts neither way
KNOWN        it is not, and no lemma notices, for the reason given; counts as a survivor
"""

Key = tuple[str, str, str]

EQUIVALENT: dict[Key, str] = {}

KNOWN: dict[Key, str] = {}
