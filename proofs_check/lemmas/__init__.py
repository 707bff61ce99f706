"""One module a lemma; each declares LEMMA."""
