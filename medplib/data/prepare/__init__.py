"""Making data folders: import of own images, converters of public data, audit, and controls that need no model."""
