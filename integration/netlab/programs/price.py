"""price: a gRPC service. A request is the ms for which its answer sleeps."""

import time
from concurrent import futures

import grpc


def get(request, context):
    time.sleep(int(request) / 1000)
    return request


server = grpc.server(futures.ThreadPoolExecutor(max_workers=12))
handler = grpc.unary_unary_rpc_method_handler(get)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Price", {"Get": handler}),))
server.add_insecure_port("[::]:50051")
server.start()
server.wait_for_termination()
