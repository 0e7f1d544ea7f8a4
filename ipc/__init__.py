"""What the supervisor and its workers agree on: messages, frames, sockets, the scoreboard.

The two programs never import each other. Everything that both must know lives in this package, and
nothing else does: no policy, no configuration, no HTTP.
"""
