"""The process that serves a home: a mount of it, its control socket, and the services beside them.

mounting          starting that process in the background
own_mount         the same for a block of Python, with whose process it ends; lease: how it is seen that this has ended
mount_server      what that process does first
served_home       the open home, what shows it, and what requests ask of that
shown_devices     devices as views show them
kernel_writes     what the kernel keeps of file systems that it has mounted is written, in threads
end_report        how that process has ended, asked for by the one that unmounts
deletions         a service: devices that are marked for deletion
events            a service: what happens to the pool, for the log
virtual_sleep     pauses of services on the clock of a test
surroundings      nothing that leads to its own mount
memory            what is freed is kept
service_manager   what a service and the service manager that started it tell each other
"""
