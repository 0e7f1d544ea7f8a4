"""supervisord's XML-RPC API over the workers, so that ``supervisorctl`` and other clients of it can control them.

``methods`` is the API itself, an adapter over the fleet; ``rpc`` turns XML into calls and values into XML; ``server``
listens on the Unix socket and streams logs. What is compatible is what a client sees: names, states, faults, texts.
Where supervisord answers a mistake of the client's with a failure of its own, this says what was wrong.
"""
