"""A kit that kills, fills, corrupts and delays whatever Penchant does, and asks for the same bits afterwards.

`python -m tests.faults --count 200 --seed 0`; a line is reproduced by `--seed S --only K` (moments in time vary, what
is done at an operation does not), and with FAULTS_VERBOSE=1 its processes say on stderr what they have to say.

kit        draws faults, lets each happen, runs the job again, applies the cure of a refusal, and judges
families   the kinds that any job can meet; damage, what happens to files between two runs
disk       disk.c, preloaded, counts operations on files and stops, kills or fails at one of them
process    a job in a forked process, and how it ended
jobs_*     what is interrupted; serving and ray_faults have kinds of their own
"""
