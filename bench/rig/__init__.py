"""What benchmarks are made of: the harness, pools and archives to measure on, peers, and what runs in guests.

harness                                     rounds, medians, goals, JSON
pools, archives                             what is measured on
moby_driver, plugin_client                  a peer, and a client of its
guests, guest_*                             contenders in User-Mode Linux
"""
