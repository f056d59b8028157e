"""A home that is open in this process: how it is made and opened, and what requests then run on.

opening           making and opening a home, as a `HomeSpec` says; done here and nowhere else
open_home         `OpenHome`: the devices, their volumes and layers, and what is shown of them
storage_options   what a layer driver's options say of making and opening
backend_facts     what these options can be, with this backend on this machine
faults            the faults of an open home
device_traces     its traces
stand_ins         what faults and traces put before devices
virtual_clock     its clock, where that is a test's
end_reports       how the process that serves a mount has ended, for those that ask
runtime           the directory in which a home that cannot be written is served
spec              `HomeSpec`: which home, and how it is to be opened
"""
