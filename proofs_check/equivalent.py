"""Changes of the code that change nothing anyone can observe, with the reason; by function and altered statement."""

EQUIVALENT: dict[tuple[str, str], str] = {}
