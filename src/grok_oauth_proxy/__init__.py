"""A local OpenAI-compatible endpoint for a Grok (SuperGrok) OAuth login."""

__version__ = "0.1.0"
