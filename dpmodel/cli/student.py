"""``dpmodel student``: a network trained on public inputs with private labels of teachers."""
EXAMPLES = ""
def student() -> None:
    """TODO"""
