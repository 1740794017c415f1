# syntax=docker/dockerfile:1
# One image for controller, driver and workers.
#
#   docker build -t orchestrate .
#   docker build -t orchestrate:cuda --build-arg TORCH_PIP_ARGS="<pip options that choose a CUDA build of torch>" .
#
# TORCH_PIP_ARGS goes to pip when it installs torch, and to nothing else; PyTorch's install page names the wheel index of
# each build. Without it pip takes the default build for this platform, which on x86-64 Linux brings CUDA: name the index
# of the CPU wheels for a small image.
ARG PYTHON_VERSION=3.11
ARG DEBIAN=bookworm

FROM python:${PYTHON_VERSION}-slim-${DEBIAN} AS build
ARG TORCH_PIP_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/orchestrate
ENV PATH=/opt/orchestrate/bin:$PATH
WORKDIR /build
# torch alone first: the largest layer, which changes only when its pin does.
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_PIP_ARGS} torch
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY deepspeed_configs deepspeed_configs
COPY orchestrator orchestrator
RUN pip install -c constraints.txt ".[train,postgres,kubernetes]"

FROM python:${PYTHON_VERSION}-slim-${DEBIAN}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin orchestrate
COPY --from=build /opt/orchestrate /opt/orchestrate
ENV PATH=/opt/orchestrate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    ORCHESTRATE_HOME=/home/orchestrate/.orchestrate
USER 10001:10001
WORKDIR /home/orchestrate
EXPOSE 8470
ENTRYPOINT ["orchestrate"]
CMD ["--help"]
