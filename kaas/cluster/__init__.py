"""The nodes of a Ray cluster: one program of ours and its agents, one on each node. Ray carries nothing else.

    program (cluster.Cluster) ──socket pair── bridge, which alone speaks to Ray (a process of its own)
       ▲ link port                               │ Ray: starts an actor on a node, and ships the code
       └──TCP, a secret each─────────────────── agent, in that actor

The bridge says which nodes there are, and starts and ends agents as it is told. An agent says its secret to the link
port, and from then on is told over that connection what to do; it ends when the connection does. All three speak in
lines of JSON (lines.py). The bridge ends when its connection to the program does, or with Ray; and with it a Ray that
it has started.

The server's agents start workers (kaas.server.engines.ray), the monitor's take samples, and the load generator's start
clients.
"""
