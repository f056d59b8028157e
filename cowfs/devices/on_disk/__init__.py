"""What is in the directory of a home, and who may change it.

files       `HomeFiles`: every path of a home, and writes that are there wholly or not at all
records     the structs of the files: devices, the set, an open transaction, the home's own settings
store       `DeviceStore`: all records in memory, written through
names       names of devices and of the pool
lock        one process writes a home at a time
options     what a new home is made of, and the rules of its sizes
making      the steps of making the directory, and what an interruption leaves
"""
