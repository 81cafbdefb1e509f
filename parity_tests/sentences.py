"""Sentences of the two halves, compared."""


def same(sentence: str) -> str:
    """A sentence without what names its half."""
    for own, common in (
        ("torch_flows", "X"),
        ("jax_flows", "X"),
        ("a torch.Tensor", "an array"),
        ("torch.tensor(", "array("),
        ("jax.numpy.array(", "array("),
        (".to(torch.float32)", ".astype(float32)"),
        ('.astype("float32")', ".astype(float32)"),
    ):
        sentence = sentence.replace(own, common)
    return sentence
