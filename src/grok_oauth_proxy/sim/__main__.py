"""`python -m grok_oauth_proxy.sim`."""

from grok_oauth_proxy.sim.server import main

if __name__ == "__main__":
    main()
