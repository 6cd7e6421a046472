"""The nodes of a Ray cluster: Ray starts one agent on each, and carries no invocation.

    server (engine) ──socket pair── bridge, which alone speaks to Ray (a process of its own: it may end with Ray)
       │  ▲ link port                  │ Ray: an actor on each node that holds its GPUs, and ships the code
       │  └──TCP, a secret each────── agent ──forks──> workers: each with a TCP connection of its own to the link port

The bridge says which nodes there are, and starts and ends agents as it is told. An agent says its secret to the link
port, and from then on is told over that connection which workers to start and to kill; it says how they ended. All
three speak in lines of JSON (lines.py). When an agent's connection ends, its workers end; when the server's end of the
bridge's does, the bridge ends, and so does a Ray that it has started.
"""
