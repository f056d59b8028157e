"""The device set of a home: thin devices by name, laid out as moby's devicemapper does, crash safe.

opening     making and opening a home; each ends in a `DeviceSet`
deviceset   `DeviceSet`, which everything else here serves. Read it first
injected    what a test puts in the place of the system, of chance and of mkfs
recovery    records and pool that contradict each other
reporting   filling in the reports
base        the base device and its file system
changes     changes that happen wholly or not at all
pools       the pool under a home: where it is, what it can still do, what is occupied
cloning     a copy of a home
active      devices in use, and quiescing one for a snapshot
uses        who uses a device, and since when
reports     what is reported of a home and its devices; each report declared once
on_disk     the files of a home's directory, its lock, its making
"""
