"""Statements whose code is not built yet: their rows say what they wait for, and neither pass nor fail.

A part of a statement that waits is said in the lemma itself (`Lemma.waits`).
"""

from proofs_check.lemma import Waiting

WAITING: tuple[Waiting, ...] = ()
