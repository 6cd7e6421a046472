"""The engine `ray`: an agent on each node of a Ray cluster starts workers there (kaas.cluster says how it is reached).

    server (engine) ──lines of JSON── agent ──forks──> workers: each with a TCP connection of its own to the link port

The agent holds the node's GPUs, since Ray gives them to its actor. Over its connection it is told which workers to
start and to kill, and says how they ended; when that connection ends, its workers end.
"""
