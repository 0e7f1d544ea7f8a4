"""An agent that asks for a pool that no configuration has."""

from penstock.workers import agent


@agent(pool="nowhere")
async def lost(body: int) -> int:
    return body
