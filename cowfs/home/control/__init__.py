"""The control socket of a home: other processes send requests to its holder.

protocol      what travels over it. Read it first
socket        its path, its peers, and files passed over it
client        asking
server        answering
clients       taking clients in, and saying what is wrong with them
unix_socket   listening on a Unix socket that its owner alone can reach
passed_file   which files that come over the socket may be read
"""
