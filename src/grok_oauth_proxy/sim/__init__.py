"""A simulated xAI: the authorization server and the API in one process, for tests and the demo.

It imports nothing from the rest of the package, so client and fake cannot share a mistake.
"""
