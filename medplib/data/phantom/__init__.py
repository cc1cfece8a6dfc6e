"""The built-in procedural data set: eight imaging modalities, exact masks and balanced conversations, drawn from a seed."""

from medplib.data.phantom.config import PhantomConfig
from medplib.data.phantom.write import PhantomSummary, write_phantom

__all__ = ["PhantomConfig", "PhantomSummary", "write_phantom"]
