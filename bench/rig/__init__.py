"""What benchmarks are made of: the harness, pools and archives to measure on, peers, and what runs in guests.

harness                                     rounds, medians, goals, JSON
pools, archives                             what is measured on
bare_handler, moby_driver, plugin_client    peers, and a client of theirs
guests, guest_*                             contenders in User-Mode Linux
"""
