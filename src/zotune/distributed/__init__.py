"""Several processes that train one model: only losses cross between them. `torch.distributed` under torchrun, or Ray.

group.py       messages between the processes, and how an error of one becomes an error of all
sharing.py     what an optimizer asks of those who share its work
parallel.py    who evaluates what, and the losses of all as one process would have them
agreement.py   do the processes run the same thing, and do they still have the same weights
follower.py    what stands for the run folder where nothing is written
launch.py      the group that torchrun starts, and what a restart means
meeting.py     how torchrun's processes find each other after restarts
own.py         processes with micro-batches of their own
sharded.py     models whose weights are shared out (FSDP2)
work.py        how much of a step and of a model one process has, for plans
pool.py        workers that come and go; worker.py is what they do, ray_crew.py finds them with Ray
"""
