# What Snakemake 9.27 is spared. All works without this file, but large studies start late: half of
# what it spends on a job is for questions that are asked again and again, or that have no use here.

import asyncio
import gc
from collections import Counter
from inspect import isfunction, signature

import snakemake.jobs
from snakemake.dag import DAG
from snakemake.io.fmt import fmt_iofile
from snakemake.jobs import Job
from snakemake.resources import Resource

# It asks a dozen times a job what arguments the same functions take.
for function in [Resource.evaluate, *filter(isfunction, globals().values())]:
    function.__signature__ = signature(function)


# To tell of a job it asks each of its files seven times what is special about it; most have no flag.
def told(file, **how):
    return fmt_iofile(file, **how) if getattr(file, "flags", True) else str(file)


# And it puts the job's command together three times.
def command(job, last=[(None, None)], put_together=Job.shellcmd.fget):
    known, written = last[0]
    if known is not job:
        written = put_together(job)
        last[0] = job, written
    return written


snakemake.jobs.fmt_iofile = told
Job.shellcmd = property(command)

# It sorts the paths of all outputs, to see that none is in a directory that is another's.
DAG.check_directory_outputs = lambda dag: None


def quicken(scheduler):
    """Spare a scheduler, when it starts, what after some hundreds of jobs takes most of its time.

    While it limits their rate, it looks for jobs to start once a second more for every job that
    has ended. And each time it measures every input of every job that could start, to prefer those
    with large ones; here priorities decide.
    """
    scheduler.job_rate_limiter = None
    scheduler.update_input_sizes = lambda jobs: asyncio.sleep(0)
    scheduler._input_sizes = Counter()  # each is 0
    gc.freeze()
    gc.enable()
