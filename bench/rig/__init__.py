"""What benchmarks are made of: the harness, pools and archives to measure on, peers, and what runs in guests.

harness                                     what a program declares its questions with
pools, archives                             what is measured on
engines                                     contenders that are engines of cowfs bench
moby_driver, plugin_client                  a peer, and a client of its
guests, guest_*                             contenders in User-Mode Linux
"""
