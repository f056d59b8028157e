"""One workload over several copy-on-write engines, in turns, with what each write cost. The rooms, from the floor up:

figures      medians, spreads, the order of turns, ties
machine      what this machine is like, and how loaded it is
results      what a run has found, as a versioned JSON document
accounting   processor time, memory and bytes written of processes; space on the host
left_behind  removes what a run that was killed has left
engines      what is compared: each makes, in a separate directory, disks and trees, and takes snapshots of them
meter        what a workload measures with: a line is a block of work, its time, and all that was counted meanwhile
workloads    what is asked: each is a context manager that prepares one engine and gives a function, one round of it
unanswered   what was asked for by name and has no answer
runner       takes rounds of all questions, with the engines in turns, and puts what was measured into a result
comparison   two results, line by line
report       a result as text, as CSV, as one HTML page

A workload is an object with a name and this method (`workloads.interface.Workload`):

    @contextmanager
    def prepared(self, contender):                          # for each round; all engines are prepared side by side
        contender.create("device", 64 << 20)
        with contender.disk("device") as path:              # or contender.tree("device"): a directory
            def measure(meter):                             # one round
                with meter.line("rewrite", RATE) as work:   # the time of this block, and what was counted in it
                    work.written_bytes += os.pwrite(...)
                    work.requests += 1
            yield measure
        contender.remove("device")
"""
